"""The part of a run that supervises attention: its settings from flags, its checks, and what is printed about it."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from finetune.data.dataset import ConversationDataset
from finetune.distributed import say
from finetune.families.base import Family
from finetune.families.parts.modules import attending_layers
from finetune.flags.arguments import Arguments
from finetune.training import look_preview
from finetune.training.look import LookSettings


def known_layers(args: Arguments, model: Any, family: Family) -> tuple[int, ...]:
    """The layers that are supervised as far as flags say; () for key layers that the monitor has yet to choose."""
    if args.look.look_layers == "all":
        return attending_layers(model, family)
    return args.look.listed_layers() or args.monitor.chosen_layers()


def check_looking(
    args: Arguments, model: Any, family: Family, train_set: ConversationDataset
) -> Collection[str] | None:
    """Check supervision before weights are loaded, and print what it will do.

    model   with what trains unfrozen; it needs no weights

    Returns SHA-256 of the supervised pictures' files; None where they are not known (streaming), and in a dry run.

    Raises ValueError for layers without attention, for layers that nothing can move, and where nothing is supervised.
    """
    layers = known_layers(args, model, family)
    look_preview.check_layers(layers, model, family)
    # Which key layers are chosen is not known yet: of all, the last one is the easiest to move.
    look_preview.check_moves(model, family, layers or attending_layers(model, family)[-1:])
    say(*_release_remarks(args))
    words = f"layers {', '.join(map(str, layers))}" if layers else "the key layers"
    if train_set.lengths is None:
        say(f"attention is supervised in {words}; streaming: rows are not counted in advance")
        return None
    count = look_preview.count_rows(train_set)
    say(*look_preview.summary(train_set, count, words, whole=args.training.dry_run))
    return None if args.training.dry_run else look_preview.picture_digests(train_set, count.places)


def _release_remarks(args: Arguments) -> Iterator[str]:
    """Where weights may be kept of a step before supervision has fallen to 0."""
    early = [
        flag
        for flag, given in (
            (f"--stop_when {args.monitor.stop_when}", args.monitor.stop_when is not None),
            ("--load_best_model_at_end True", args.training.load_best_model_at_end),
        )
        if given
    ]
    if early and args.look.look_release > 0:
        yield (
            f"--look_release {args.look.look_release:g} lets the run end on the language loss alone, but "
            f"{' and '.join(early)} may keep weights of a step before that, which supervision still moves"
        )


def settings_of(
    args: Arguments,
    model: Any,
    family: Family,
    watchers: Sequence[Any],
    pictures: Collection[str] | None,
) -> LookSettings | None:
    """The settings of supervision; None without it.

    watchers   the monitor, which chooses key layers as training begins
    pictures   as ``check_looking`` returns
    """
    chosen = args.look
    if not chosen.supervises:
        return None
    known = known_layers(args, model, family)
    layers: Callable[[], Sequence[int]] = (lambda: known) if known else (lambda: watchers[0].chosen_layers)
    return LookSettings(
        chosen.look_weight,
        layers,
        chosen.look_loss,
        chosen.look_rows,
        chosen.look_target,
        chosen.look_warmup,
        chosen.look_release,
        pictures,
    )
