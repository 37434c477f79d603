"""stub"""
def aggregate(folder):
    return {"state": "done"}
