"""A misspelt key is answered with the key that was meant, out of the options that the command line chooses."""

import pytest

from mmexpert.key_hints import chosen_options, key_hint

HINTS = {
    "batch_size": ": did you mean 'trainer.batch_size'?",
    "batch_sise": ": did you mean 'trainer.batch_size'?",
    "trainr.epoch": ": did you mean 'trainer.epochs'?",
    "trainer.lr": ": did you mean 'optimizer.lr'?",
    "bert.width": ": did you mean 'encoder.text.bert.width'?",
    "width": ": did you mean 'encoder.radar.width' or 'encoder.text.bert.width'?",
    "encoder.radr.width": ": did you mean 'encoder.radar.width'?",
    "n_patients": ": there is 'dataset.n_patients' with dataset=hip_phantom",
    "loss.smoothng": " in the option that is chosen; there is 'label_smoothing' in loss=superclip",
}


@pytest.mark.parametrize("key", HINTS)
def test_a_key_without_its_group_or_with_another_is_answered_with_the_whole_key(key):
    assert key_hint(key, []) == HINTS[key]


def test_only_the_keys_of_the_chosen_option_are_listed():
    told = key_hint("loss.smoothng", ["loss=superclip"])
    assert told.startswith(": did you mean 'label_smoothing'? There are class_loss_weight,")
    assert "init_bias" not in told and "token_weight" not in told  # of siglip, of superclip_token


def test_a_preset_chooses_options_and_the_command_line_chooses_over_it():
    assert chosen_options([])["loss"] == ["clip"] and "encoder/image" not in chosen_options([])
    preset = chosen_options(["experiment=hip"])
    assert preset["loss"] == ["superclip"] and preset["encoder/image"] == ["test_resnet"] and "encoder/radar" not in preset
    assert chosen_options(["loss=clip,siglip", "experiment=hip"])["loss"] == ["clip", "siglip"]
