"""Checkpoints: ModelCheckpoint and BackupAndRestore."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from easytorch import FileError, Model
from easytorch.callbacks import BackupAndRestore, EarlyStopping, Every, LambdaCallback, ModelCheckpoint
from easytorch.checkpoint import rotation
from tests.loops import same_weights
from tests.scripted import (
    NAN,
    UPDATES,
    Rates,
    Scripted,
    Weights,
    equal,
    new_model,
    raising,
    train,
)

pytestmark = pytest.mark.filterwarnings("ignore:The validation loss of epoch")  # scripted values


def written(folder):
    return sorted(path.name for path in Path(folder).iterdir())


# ModelCheckpoint


def checkpointed(folder, values, name="{epoch}.pt", monitor="val_loss", model=None, extra=(), **options):
    """Run with these values, and return the names of the files and the callback."""
    model = model or new_model(metrics=["accuracy"])
    checkpoint = ModelCheckpoint(folder / name, monitor, **options)
    train(model, len(values), Scripted(**{monitor: values}), *extra, checkpoint)
    return written(folder), checkpoint


def test_a_checkpoint_is_named_after_the_logs_of_its_epoch(tmp_path):
    names, _ = checkpointed(tmp_path / "new" / "folder", [1.23456, 0.5], "{epoch:02d}-{val_loss:.3f}.pt")
    assert names == ["01-1.235.pt", "02-0.500.pt"]


def test_a_checkpoint_contains_the_model_of_its_epoch(tmp_path):
    weights = Weights()
    checkpointed(tmp_path, [3, 2, 1], extra=[weights])
    model = new_model().load(tmp_path / "2.pt")
    assert equal(model.module.state_dict(), weights.copies[1])
    assert model.state.epoch == 2
    assert model.history.epoch == [0, 1]


def test_a_file_of_the_same_name_is_replaced(tmp_path):
    assert checkpointed(tmp_path, [3, 2, 1], "last.pt", keep=1)[0] == ["last.pt"]
    assert new_model().load(tmp_path / "last.pt").state.epoch == 3


@pytest.mark.parametrize(
    ("save_freq", "expected"),
    [
        ("epoch", ["1.pt", "2.pt", "3.pt", "4.pt"]),
        (Every(epochs=2), ["2.pt", "4.pt"]),
        (Every(epochs=3), ["3.pt"]),
        (Every(minutes=1000), []),
    ],
)
def test_save_freq_counts_epochs_or_minutes(save_freq, expected, tmp_path):
    assert checkpointed(tmp_path, [1] * 4, save_freq=save_freq)[0] == expected


@pytest.mark.parametrize("save_freq", [2, Every(updates=2)])
def test_save_freq_counts_updates_over_all_epochs(save_freq, tmp_path):
    assert checkpointed(tmp_path, [1, 1], "{epoch}-{batch}.pt", save_freq=save_freq)[0] == [
        "1-2.pt",
        "2-1.pt",
        "2-3.pt",
    ]


def test_minutes_are_checked_after_every_update(tmp_path):
    assert checkpointed(tmp_path, [1], "{batch}.pt", save_freq=Every(minutes=1e-7))[0] == ["1.pt", "2.pt", "3.pt"]


@pytest.mark.parametrize("save_freq", [0, -1, False, None, 2.5, "weekly", "0 epochs", "-1 epochs", "1.5 epochs"])
def test_invalid_save_freq_is_refused(save_freq):
    with pytest.raises(ValueError, match=r"save_freq must be 'epoch'"):
        ModelCheckpoint("x.pt", save_freq=save_freq)


def test_save_best_only_needs_save_freq_in_epochs():
    with pytest.raises(ValueError, match=r"save_freq in epochs"):
        ModelCheckpoint("x.pt", save_best_only=True, save_freq=5)


def test_save_best_only_saves_improvements(tmp_path):
    names, checkpoint = checkpointed(tmp_path, [3, NAN, 2, 2.5, 1], save_best_only=True)
    assert names == ["1.pt", "3.pt", "5.pt"]
    assert checkpoint.best_path == str(tmp_path / "5.pt")


def test_save_best_only_uses_the_direction_of_the_metric(tmp_path):
    names, _ = checkpointed(tmp_path, [0.5, 0.4, 0.6], monitor="val_accuracy", save_best_only=True)
    assert names == ["1.pt", "3.pt"]


def test_nan_in_the_first_epoch_is_not_saved_as_the_best(tmp_path):
    assert checkpointed(tmp_path, [NAN, 2, 3], save_best_only=True)[0] == ["2.pt"]


def test_the_first_file_must_improve_on_the_threshold(tmp_path):
    assert checkpointed(tmp_path, [3, 2, 1.9, 1], save_best_only=True, initial_value_threshold=2)[0] == ["3.pt", "4.pt"]


def test_the_best_value_of_a_checkpoint_survives_a_second_fit(tmp_path):
    model = new_model()
    checkpoint = ModelCheckpoint(tmp_path / "{epoch}.pt", save_best_only=True)
    scripted = Scripted(val_loss=[2, 1, 1.5, 0.5])
    train(model, 2, scripted, checkpoint)
    train(model, 2, scripted, checkpoint)
    assert written(tmp_path) == ["1.pt", "2.pt", "4.pt"]


def test_save_best_only_needs_its_monitor_before_the_first_step(tmp_path):
    model = new_model()
    with pytest.raises(ValueError, match=r"ModelCheckpoint monitors 'val_acuracy'"):
        train(model, 1, ModelCheckpoint(tmp_path / "x.pt", "val_acuracy", save_best_only=True))
    assert model.state.step == 0


def test_a_checkpoint_without_comparison_needs_no_monitor(tmp_path):
    train(new_model(), 1, ModelCheckpoint(tmp_path / "x.pt"), validation_data=None)
    assert written(tmp_path) == ["x.pt"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"keep": 2}, ["4.pt", "5.pt"]),
        ({"keep": 1, "keep_best": 2}, ["1.pt", "3.pt", "5.pt"]),
        ({"keep": 2, "keep_best": 1}, ["1.pt", "4.pt", "5.pt"]),
        ({"keep": 1, "save_best_only": True}, ["1.pt"]),
    ],
)
def test_the_last_and_the_best_files_are_retained(options, expected, tmp_path):
    assert checkpointed(tmp_path, [1, 3, 2, 4, 5], **options)[0] == expected


def test_nan_is_not_among_the_best(tmp_path):
    assert checkpointed(tmp_path, [NAN, 2, 3, 4], keep=1, keep_best=1)[0] == ["2.pt", "4.pt"]


@pytest.mark.parametrize("options", [{"keep": 0}, {"keep": -1}, {"keep_best": 0}, {"keep_best": -1}])
def test_to_keep_less_than_one_file_is_refused(options):
    with pytest.raises(ValueError, match=r"must be a positive integer"):
        ModelCheckpoint("x.pt", **options)


def test_other_files_are_not_deleted(tmp_path):
    (tmp_path / "mine.pt").write_text("")
    assert checkpointed(tmp_path, [1, 2, 3], keep=1)[0] == ["3.pt", "mine.pt"]


def test_a_save_comes_before_a_delete(tmp_path):
    seen = []

    class Watched(Model):
        def save(self, path="model.pt"):
            saved = super().save(path)
            seen.append(written(tmp_path))
            return saved

    model = Watched(torch.nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy")
    checkpointed(tmp_path, [1, 2, 3], model=model, keep=1)
    assert seen == [["1.pt"], ["1.pt", "2.pt"], ["2.pt", "3.pt"]]


def test_a_failed_checkpoint_is_a_warning(tmp_path):
    (tmp_path / "2.pt").mkdir()
    with pytest.warns(UserWarning, match=r"Cannot write .*2\.pt"):
        names, _ = checkpointed(tmp_path, [1, 2, 3], keep=1)
    assert names == ["2.pt", "3.pt"]


@pytest.mark.filterwarnings("ignore")
def test_a_failed_checkpoint_leaves_the_last_valid_file(tmp_path):
    (tmp_path / "2.pt").mkdir()
    with pytest.raises(OSError, match=r"Cannot write .*2\.pt"):
        checkpointed(tmp_path, [1, 2], keep=1)  # the final one raises
    assert new_model().load(tmp_path / "1.pt").state.epoch == 1


def test_save_weights_only_saves_the_state_dict(tmp_path):
    weights = Weights()
    checkpointed(tmp_path, [1], save_weights_only=True, extra=[weights])
    assert equal(torch.load(tmp_path / "1.pt", weights_only=True), weights.copies[0])


def test_an_unknown_field_is_refused_before_the_first_step(tmp_path):
    model = new_model()
    with pytest.raises(ValueError, match=r"'val_acc'.*val_loss"):
        train(model, 1, ModelCheckpoint(tmp_path / "{epoch}-{val_acc:.2f}.pt"))
    assert model.state.step == 0
    assert written(tmp_path) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "save_freq", "unknown"),
    [("{batch}.pt", "epoch", "batch"), ("{val_loss:.2f}.pt", 1, "val_loss")],
)
def test_a_field_without_value_is_refused_before_the_first_step(name, save_freq, unknown, tmp_path):
    model = new_model()
    with pytest.raises(ValueError, match=rf"contains '{unknown}', which has no value when a file is written"):
        train(model, 1, ModelCheckpoint(tmp_path / name, save_freq=save_freq))
    assert model.state.step == 0


def test_a_missing_field_value_does_not_end_training(tmp_path):
    model = new_model()
    train(model, 4, ModelCheckpoint(tmp_path / "{epoch}-{val_loss:.2f}.pt"), validation_freq=2)
    assert model.state.epoch == 4
    assert {name.split("-")[0] for name in written(tmp_path)} >= {"2", "4"}


@pytest.mark.parametrize("save_freq", [1, Every(minutes=5)])
def test_val_fields_are_refused_between_epochs(save_freq, tmp_path):
    model = new_model()
    with pytest.raises(
        ValueError, match=r"'val_loss', which has no value when a file is written, because save_freq counts"
    ):
        train(model, 1, ModelCheckpoint(tmp_path / "{epoch}-{val_loss:.2f}.pt", save_freq=save_freq))
    assert model.state.step == 0


def test_lr_is_a_field_between_epochs(tmp_path):
    model = new_model(scheduler=lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.5, total_steps=4))
    train(model, 1, ModelCheckpoint(tmp_path / "{batch}-{lr:.4f}.pt", save_freq=1), rates := Rates())
    rates.used.append(model.optimizer.param_groups[0]["lr"])
    assert written(tmp_path) == [f"{batch}-{rate:.4f}.pt" for batch, rate in enumerate(rates.used[1:], 1)]


@pytest.mark.parametrize("name", ["{epoch}-{loss:d}.pt", "{epoch}-{val_loss:.2x}.pt", "{epoch:s}.pt"])
def test_an_invalid_format_is_refused_before_the_first_step(name, tmp_path):
    model = new_model()
    with pytest.raises(ValueError, match=r"cannot be formatted: .*Use a format for numbers: \{val_loss:\.3f\}"):
        train(model, 1, ModelCheckpoint(tmp_path / name))
    assert model.state.step == 0


def test_fields_may_be_strings_and_integers_from_a_callback(tmp_path):
    log = LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(phase="head", count=7))
    train(new_model(), 1, log, ModelCheckpoint(tmp_path / "{phase:s}-{count:03d}.pt"))
    assert written(tmp_path) == ["head-007.pt"]


def test_a_verbose_checkpoint_prints_the_file(tmp_path, capsys):
    checkpointed(tmp_path, [1.5], save_best_only=True, verbose=1)
    assert capsys.readouterr().out == f"Epoch 1: saved {tmp_path / '1.pt'} (val_loss 1.5000)\n"


def test_checkpoints_do_not_change_the_training(tmp_path):
    plain, saved = new_model(), new_model()
    train(plain, 3)
    train(saved, 3, ModelCheckpoint(tmp_path / "{epoch}-{batch}.pt", save_freq=1), ModelCheckpoint(tmp_path / "x.pt"))
    assert equal(plain.module.state_dict(), saved.module.state_dict())


# BackupAndRestore


def dropping():
    return nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.3), nn.Linear(16, 3))


def steps_in(folder):
    return [int(path.stem.removeprefix("step-")) for path in reversed(rotation.list_checkpoints(folder))]


def run(folder, *more, epochs=3, **options):
    """Run a program from its first line; only the folder connects it with an earlier run."""
    model = new_model(dropping)
    backup = [BackupAndRestore(folder, **options)] if folder else []
    train(model, epochs, *backup, *more, shuffle=True, on_interrupt="return")
    return model


def crashed(folder, at, **options):
    """Run the program until update ``at`` has ended."""
    updates = iter(range(1, 99))
    crash = LambdaCallback(on_train_batch_end=lambda *_: next(updates) == at and pull_the_plug())
    crash.priority = 25  # after the backup of the update
    with pytest.raises(KeyboardInterrupt):
        run(folder, crash, **options)


def pull_the_plug():
    raise KeyboardInterrupt


def test_a_stopped_run_resumes_exactly(tmp_path):
    undisturbed = run(None)
    crashed(tmp_path, at=2 * UPDATES + 1)
    assert steps_in(tmp_path) == [UPDATES, 2 * UPDATES]
    continued = run(tmp_path)
    assert same_weights(undisturbed.module, continued.module)
    assert undisturbed.history.history == continued.history.history


def test_a_backup_does_not_change_the_training(tmp_path):
    assert same_weights(run(None).module, run(tmp_path, save_freq=1).module)


def test_the_backup_of_a_complete_run_is_deleted(tmp_path):
    run(tmp_path / "backup")
    assert not (tmp_path / "backup").exists() or written(tmp_path / "backup") == []


def test_delete_checkpoint_false_retains_the_backup(tmp_path):
    run(tmp_path, delete_checkpoint=False)
    assert steps_in(tmp_path) == [2 * UPDATES, 3 * UPDATES]


def test_deleting_the_backup_leaves_other_files(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    run(tmp_path)
    assert written(tmp_path) == ["thesis.txt"]


def test_resuming_from_a_file_leaves_other_files(tmp_path):
    run(tmp_path / "a", delete_checkpoint=False)
    shutil.copy(rotation.step_path(tmp_path / "a", UPDATES * 3), tmp_path / "good.pt")
    (tmp_path / "thesis.txt").write_text("years of work")
    run(tmp_path / "good.pt")
    assert {"thesis.txt", "good.pt"} <= set(written(tmp_path))


def test_an_archived_checkpoint_does_not_replace_another(tmp_path):
    crashed(tmp_path, at=2 * UPDATES + 1)
    for _ in range(2):
        run(rotation.step_path(tmp_path, UPDATES), delete_checkpoint=False, keep=9)
    archived = ["step-0000000006.pt.archived", "step-0000000006.pt.archived-2", "step-0000000009.pt.archived"]
    assert [name for name in written(tmp_path) if "archived" in name] == archived


def test_a_reused_backup_saves_the_current_random_states(tmp_path):
    backup = BackupAndRestore(tmp_path, save_freq=1, delete_checkpoint=False)
    press = LambdaCallback(on_test_batch_end=lambda *_: signal.raise_signal(signal.SIGINT))
    train(new_model(dropping), 2, backup, press, on_interrupt="return")
    train(new_model(dropping), 2, backup, validation_data=None)
    content = rotation.read_newest(tmp_path)[1]
    assert content["state"]["step"] == 2 * UPDATES
    assert torch.equal(content["train_data"]["random"]["torch"], torch.get_rng_state())


def test_the_backup_remains_after_an_error(tmp_path):
    with pytest.raises(RuntimeError, match=r"on_epoch_begin failed"):
        run(tmp_path, raising("on_epoch_begin", at=2))
    assert steps_in(tmp_path) == [UPDATES, 2 * UPDATES]


def test_the_backup_remains_after_an_error_in_the_last_epoch(tmp_path):
    with pytest.raises(RuntimeError, match=r"on_epoch_end failed"):
        run(tmp_path, raising("on_epoch_end", at=2))
    assert steps_in(tmp_path)


def test_the_backup_remains_after_an_error_in_a_stopped_run(tmp_path):
    def stop(batch, logs):
        callback.model.stop_training = callback.model.state.step == UPDATES + 1

    callback = LambdaCallback(on_train_batch_end=stop)
    with pytest.raises(RuntimeError, match=r"on_epoch_end failed"):
        run(tmp_path, callback, raising("on_epoch_end", at=1))
    assert steps_in(tmp_path)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"save_freq": 2}, [4, 6]),
        ({"save_freq": 2, "keep": 1}, [6]),
        ({"save_freq": 2, "keep": 9}, [2, 4, 6]),
        ({"save_freq": "epoch", "keep": 9}, [3, 6]),
        ({"save_freq": "epoch", "minutes": 0.0, "keep": 3}, [5, 6, 7]),
        ({"save_freq": "epoch", "minutes": None, "keep": 1}, [6]),
    ],
)
def test_backups_follow_save_freq_minutes_and_keep(options, expected, tmp_path):
    crashed(tmp_path, at=7, **options)
    assert steps_in(tmp_path) == expected


def test_a_complete_run_deletes_what_a_killed_process_left(tmp_path):
    run(tmp_path, delete_checkpoint=False, keep=9)
    assert steps_in(tmp_path) == [UPDATES, 2 * UPDATES, 3 * UPDATES]
    run(tmp_path, delete_checkpoint=False)
    assert steps_in(tmp_path) == [2 * UPDATES, 3 * UPDATES]


def test_a_refused_resume_deletes_nothing(tmp_path):
    run(tmp_path, delete_checkpoint=False, keep=9)
    with pytest.raises(FileError, match=r"belongs to another module"):
        train(new_model(lambda: nn.Linear(8, 3)), 3, BackupAndRestore(tmp_path, delete_checkpoint=False))
    with pytest.raises(RuntimeError, match=r"on_train_begin failed"):
        run(tmp_path, raising("on_train_begin"), delete_checkpoint=False)
    assert steps_in(tmp_path) == [UPDATES, 2 * UPDATES, 3 * UPDATES]


@pytest.mark.parametrize("save_freq", [False, 0, -1, None, "batch"])
def test_invalid_save_freq_of_a_backup_is_refused(save_freq, tmp_path):
    with pytest.raises(ValueError, match=r"save_freq must be 'epoch', a positive integer"):
        BackupAndRestore(tmp_path, save_freq=save_freq)


@pytest.mark.parametrize("keep", [0, -1])
def test_to_keep_less_than_one_backup_is_refused(keep, tmp_path):
    with pytest.raises(ValueError, match=r"keep must be a positive integer"):
        BackupAndRestore(tmp_path, keep=keep)


def test_a_damaged_newest_backup_is_skipped_with_a_warning(tmp_path):
    undisturbed = run(None)
    crashed(tmp_path, at=2 * UPDATES + 1)
    newest = rotation.step_path(tmp_path, 2 * UPDATES)
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=rf"{newest.name}.*The older checkpoint 'step-0000000003\.pt' is used"):
        continued = run(tmp_path)
    assert same_weights(undisturbed.module, continued.module)


def test_a_folder_of_damaged_backups_is_an_error(tmp_path):
    crashed(tmp_path, at=2 * UPDATES + 1)
    for path in rotation.list_checkpoints(tmp_path):
        path.write_bytes(b"PK")
    with pytest.raises(FileError, match=r"None of the 2 checkpoints .* is intact"):
        run(tmp_path)


def test_temporary_files_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / ".step-0000000003.pt.x1y2.tmp").write_bytes(b"half")
    crashed(tmp_path, at=UPDATES + 1)
    assert written(tmp_path) == ["step-0000000003.pt"]


def block_folder(folder, epochs):
    """Replace the folder by a file in ``epochs``, so that nothing can be written."""

    def block(epoch, logs):
        if folder.is_dir():
            shutil.rmtree(folder)
        folder.unlink(missing_ok=True)
        if epoch in epochs:
            folder.write_text("")

    return LambdaCallback(on_epoch_begin=block)


def test_a_failed_backup_is_a_warning(tmp_path):
    folder = tmp_path / "backup"
    with pytest.warns(UserWarning, match=r"backup.*Training continues") as warned:
        model = run(folder, block_folder(folder, epochs=[1]), delete_checkpoint=False)
    assert len(warned) == 1
    assert same_weights(run(None).module, model.module)
    assert steps_in(folder) == [3 * UPDATES]


def test_a_failed_last_backup_is_an_error_after_training(tmp_path):
    folder, model = tmp_path / "backup", new_model()
    backup = BackupAndRestore(folder, delete_checkpoint=False)
    with pytest.warns(UserWarning, match=r"Training continues"), pytest.raises(OSError, match=r"backup"):
        train(model, 2, block_folder(folder, epochs=[1]), backup)
    assert model.state.step == 2 * UPDATES


def test_a_failed_backup_does_not_fail_the_next_fit(tmp_path):
    folder, model = tmp_path / "backup", new_model()
    backup = BackupAndRestore(folder, delete_checkpoint=False, save_freq=100)
    backup.minutes = 0.0
    with pytest.warns(UserWarning, match=r"Training continues"), pytest.raises(OSError, match=r"backup"):
        train(model, 1, block_folder(folder, epochs=[0]), backup)
    folder.unlink()
    backup.minutes = None
    train(model, 1, backup)


def test_ctrl_c_saves_a_backup_of_the_current_update(tmp_path):
    interrupt = LambdaCallback(on_train_batch_end=lambda batch, _: batch == 1 and signal.raise_signal(signal.SIGINT))
    model = run(tmp_path, interrupt)
    assert model.history.interrupted
    assert steps_in(tmp_path) == [2]
    assert same_weights(run(tmp_path).module, run(None).module)


def test_a_failed_backup_at_ctrl_c_is_an_error(tmp_path):
    closed = []
    interrupt = LambdaCallback(on_train_batch_end=lambda batch, _: batch == 1 and signal.raise_signal(signal.SIGINT))
    close = LambdaCallback(on_train_end=closed.append)
    with pytest.raises(OSError, match=r"backup"):
        run(tmp_path / "backup", block_folder(tmp_path / "backup", epochs=[0]), interrupt, close)
    assert len(closed) == 1


def test_a_run_that_stopped_early_stays_stopped(tmp_path):
    def program():
        model = new_model()
        train(model, 9, Scripted(val_loss=[1, 2, 3, 4, 5, 6, 7, 8, 9]), EarlyStopping(patience=2), resume=tmp_path)
        return model

    first, second = program(), program()
    assert first.state.step == second.state.step == 3 * UPDATES
    assert same_weights(first.module, second.module)


def test_the_best_value_of_a_checkpoint_survives_a_restart(tmp_path):
    def program(*more):
        checkpoint = ModelCheckpoint(tmp_path / "best" / "{epoch}.pt", save_best_only=True, keep=1)
        train(new_model(), 4, Scripted(val_loss=[2, 1, 1.5, 0.5]), checkpoint, *more, resume=tmp_path / "run")

    with pytest.raises(RuntimeError, match=r"on_epoch_begin failed"):
        program(raising("on_epoch_begin", at=2))
    with pytest.raises(RuntimeError, match=r"on_epoch_begin failed"):
        program(raising("on_epoch_begin", at=3))
    assert written(tmp_path / "best") == ["2.pt"]
    program()
    assert written(tmp_path / "best") == ["4.pt"]


@pytest.mark.parametrize("path", ["", "/", "new/"])
def test_a_folder_as_filepath_is_refused(path, tmp_path):
    model = Model(nn.Linear(2, 1)).compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"is a folder\. Pass the name of a file, such as '.*model-\{epoch\}\.pt'"):
        model.fit(torch.rand(4, 2), torch.rand(4, 1), verbose=0, callbacks=[ModelCheckpoint(f"{tmp_path}/{path}")])
    assert model.state.step == 0


def test_saving_to_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"path must name a file, received the folder .*model\.pt'"):
        Model(nn.Linear(2, 1)).save(f"{tmp_path}/new/")


def test_names_may_have_the_rate_of_each_optimizer(tmp_path):
    net = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 3))
    model = Model(net, device="cpu").compile({"0": ("sgd", {"lr": 0.5}), "1": "sgd"}, "cross_entropy", lr=0.25)
    callback = ModelCheckpoint(tmp_path / "{batch}-{lr_0}-{lr_1}.pt", save_freq=1)
    model.fit(torch.randn(8, 8), torch.arange(8) % 3, batch_size=4, callbacks=[callback], verbose=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1-0.5-0.25.pt", "2-0.5-0.25.pt"]


def test_a_field_that_a_custom_step_never_logs_is_reported(tmp_path):
    class Custom(Model):
        def train_step(self, batch):
            return {**super().train_step(batch), "entropy": 1.0}

    model = Custom(nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy")
    callback = ModelCheckpoint(tmp_path / "{epoch}-{entropi}.pt")
    with pytest.warns(
        UserWarning, match="contains 'entropi', which the logs do not .* Did you mean 'entropy'"
    ) as caught:
        model.fit(torch.randn(8, 8), torch.arange(8) % 3, epochs=2, callbacks=[callback], verbose=0)
    assert len(caught) == 1
