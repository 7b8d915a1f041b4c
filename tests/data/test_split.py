from herd.data.split import is_held_out

GROUPS = [f"module_{n}" for n in range(2000)]


def test_about_the_asked_share_is_held_out():
    held_out = sum(is_held_out(group, 0.08) for group in GROUPS)
    assert 120 < held_out < 200


def test_a_larger_share_contains_a_smaller_one():
    assert all(is_held_out(group, 0.2) for group in GROUPS if is_held_out(group, 0.1))


def test_the_ends_hold_out_nothing_and_everything():
    assert not any(is_held_out(group, 0.0) for group in GROUPS)
    assert all(is_held_out(group, 1.0) for group in GROUPS)


def test_the_split_of_known_names_never_changes():
    names = ("os", "json", "asyncio", "argparse", "tkinter", "email")
    assert [name for name in names if is_held_out(name, 0.5)] == ["json", "asyncio", "email"]
