"""The style of every page: light and dark by the reader's setting, one column on a phone, nothing fetched."""

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#5d6672;--line:#d9dee5;--back:#fff;--panel:#f6f7f9;--mark:#fff3c4;
  --good:#117a37;--bar:#3b6fb6;--bad:#b3261e;--heat:59,111,182;--s0:#2f6fb7;--s1:#d1660b;--s2:#2a8f4b;--s3:#b5328a;--s4:#7a5cc4;
  --s5:#8a6d00;--s6:#00868b;--s7:#6b6f76}
@media(prefers-color-scheme:dark){:root{--ink:#e5e8ec;--soft:#a0a9b5;--line:#39404a;--back:#14171b;--panel:#1d2127;--mark:#4a3d0c;
  --good:#5fd38a;--bad:#ff8a80;--bar:#6fa3e6;--heat:111,163,230;--s0:#6fa8ea;--s1:#f3984b;--s2:#62c483;--s3:#e77cc2;--s4:#ac95ea;
  --s5:#d6b944;--s6:#4cc4c8;--s7:#a5abb3}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:var(--ink);background:var(--back);max-width:76rem;
  margin:0 auto;padding:1.2rem 1rem 4rem;overflow-wrap:anywhere}
h1{font-size:1.5rem;margin:.2rem 0 .4rem;line-height:1.25}
h2{font-size:1.15rem;margin:2.2rem 0 .6rem;padding-top:.7rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.2rem 0 .4rem}
p{margin:.4rem 0}
.soft,caption span{color:var(--soft);font-weight:400}
nav{font-size:.9rem}
nav a{margin-right:.9rem;white-space:nowrap}
a{color:var(--bar)}
pre{background:var(--panel);border:1px solid var(--line);border-radius:6px;padding:.6rem .8rem;white-space:pre-wrap;
  font-size:.85rem}
code{font-size:.9em}
.wide{overflow-x:auto;margin:.8rem 0}
table{min-width:min(100%,38rem);border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
caption>div{max-width:calc(100vw - 2.2rem)}
caption{text-align:left;font-weight:600;padding-bottom:.3rem}
td,th{border-bottom:1px solid var(--line);padding:.25rem .7rem .25rem 0;text-align:left;vertical-align:top;font-weight:400}
thead th{color:var(--soft);white-space:nowrap;vertical-align:bottom}
td.n,th.n{text-align:right;white-space:nowrap}
tr.mark td,tr.mark th{background:var(--mark)}
td,th{overflow-wrap:break-word}
td.long,th.long{min-width:11rem;overflow-wrap:anywhere}
.state{display:inline-block;border-radius:1rem;padding:0 .7rem;border:1px solid var(--line);font-size:.85rem;margin-right:.4rem}
.warn{border-left:4px solid var(--s1);background:var(--panel);padding:.4rem .8rem;margin:.6rem 0}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));gap:1rem}
figure{margin:0;min-width:0}
figcaption{font-size:.85rem}
.chart svg{width:100%;height:auto;display:block}
.chart text{font:11px system-ui,sans-serif;fill:var(--soft)}
.chart .axis{stroke:var(--line)}
.chart path{fill:none;stroke-width:1.8}
.chart .rule{stroke:var(--soft);stroke-dasharray:4 3}
.key-line{display:inline-block;margin-right:.9rem}
.key-line i{display:inline-block;width:1.1rem;height:0;border-top:3px solid;vertical-align:middle;margin-right:.3rem}
.examples{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,23rem),1fr));gap:1rem}
.example{border:1px solid var(--line);border-radius:8px;padding:.7rem .8rem;min-width:0}
.example h3{margin:0 0 .4rem;font-size:.9rem}
.ask{display:flex;flex-wrap:wrap;gap:.8rem;align-items:flex-start;margin-bottom:.5rem}
.ask p{margin:0;flex:1 1 9rem}
ol.found{margin:0;padding:0;list-style:none;font-size:.85rem;line-height:1.35}
ol.found .pics img{width:54px}
ol.found li{display:flex;flex-wrap:wrap;gap:.2rem .6rem;align-items:center;padding:.2rem 0;border-top:1px solid var(--line)}
ol.found li>span:last-child{flex:1 1 9rem;min-width:0}
ol.found .score{min-width:3.8rem;text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.right{color:var(--good);font-weight:600}
.pics{display:flex;gap:3px;flex:none}
.pics img{display:block;border-radius:3px;width:72px;height:auto}
.ask .pics img{width:92px}
.sheet ol.found{display:flex;flex-wrap:wrap;gap:.5rem}
.sheet ol.found li{flex-direction:column;border:0;width:82px;align-items:flex-start;gap:.1rem;font-size:.75rem}
.sheet ol.found li>span:last-child{flex:none}
.sheet ol.found .score{min-width:0}
.sheet ol.found .pics img{width:100%;max-width:72px}
.square{max-width:30rem}
.square svg{width:100%;height:auto;border:1px solid var(--line)}
.square rect{fill:var(--bar)}
.square rect.own{stroke:var(--s1);stroke-width:.12}
table.counts{min-width:min(100%,19rem)}
.counts td{text-align:center;padding:.3rem .5rem;border:1px solid var(--back);font-size:.85rem;min-width:2.2rem}
.counts thead th{text-align:center}
.counts thead th span{writing-mode:vertical-rl;transform:rotate(180deg);display:inline-block;max-height:12rem}
.counts th{border:0;overflow-wrap:normal}
.meter{width:130px;height:14px;display:block}
.meter .track{fill:var(--line)}
.meter .bar{fill:var(--bar)}
.meter line{stroke:var(--ink)}
.meter .chance{stroke:var(--bad);stroke-width:2}
details{margin:.6rem 0}
summary{cursor:pointer;color:var(--bar)}
@media(max-width:520px){
  .meter{display:none}td,th{padding-right:.25rem}table{font-size:.85rem}body{padding:.8rem .7rem 3rem}
  .pics img{width:56px}.ask .pics img{width:84px}ol.found .score{min-width:3.6rem}h1{font-size:1.2rem}}
"""
