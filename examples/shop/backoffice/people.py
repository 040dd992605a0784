"""Know the people of the back office: a clerk may give money back, a trainee may only look.

Make the database, and people in it, with a password for each on a line of standard input:

    python -m shop.backoffice.people alice:clerk dave:trainee < passwords.txt
"""

from __future__ import annotations

import os
import sys

CLERK, TRAINEE = GROUPS = ("clerk", "trainee")


def move_in(people: dict[str, str], passwords: list[str]) -> None:
    """Bring the database up to date, and make *people* with their groups, or give them these."""
    from django.contrib.auth import get_user_model  # noqa: PLC0415 - once Django is set up
    from django.contrib.auth.models import Group, Permission  # noqa: PLC0415 - as above
    from django.core.management import call_command  # noqa: PLC0415 - as above

    call_command("migrate", verbosity=0)
    look = Permission.objects.get(codename="view_order")
    for (name, group), password in zip(people.items(), passwords, strict=True):
        user, _ = get_user_model().objects.get_or_create(username=name)
        user.is_staff = True
        user.set_password(password)
        user.save()
        its_group, _ = Group.objects.get_or_create(name=group)
        its_group.permissions.set([look])
        user.groups.set([its_group])
        print(f"{name} is {group}")


def main(arguments: list[str]) -> None:
    """Make or change people."""
    import django  # noqa: PLC0415 - a command of its own; in a service Django is set up by wsgi.py

    people = dict(argument.partition(":")[::2] for argument in arguments)
    if not people or not set(people.values()) <= set(GROUPS):
        sys.exit(f"usage: python -m shop.backoffice.people NAME:{'|'.join(GROUPS)} ... < PASSWORDS")
    passwords = sys.stdin.read().splitlines()
    if len(passwords) != len(people) or not all(passwords):
        sys.exit("a password for each comes on a line of standard input, and can't be empty")
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.backoffice.settings")
    django.setup()
    move_in(people, passwords)


if __name__ == "__main__":
    main(sys.argv[1:])
