"""A database with the people of the shop in it, made when the service starts."""

from django.core.management import call_command
from shop import ROLES


def move_in():
    from django.contrib.auth.models import Group, User

    call_command("migrate", verbosity=0)
    for name, roles in ROLES.items():
        user = User.objects.create_user(name, password=f"{name}-password")
        user.groups.set(Group.objects.get_or_create(name=role)[0] for role in roles)
    User.objects.create_superuser("root", password="root-password")
