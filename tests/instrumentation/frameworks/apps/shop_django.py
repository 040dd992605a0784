"""The Django shop, as a `wsgi.py` and an `asgi.py` in one: the settings are named here and nowhere before."""

import os

from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from shop_django_people import move_in

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop_django_settings")
application = get_wsgi_application()
asgi = get_asgi_application()
move_in()
