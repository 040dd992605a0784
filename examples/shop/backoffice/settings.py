"""The settings of a Django project like any other.

SHOP_SECRET_KEY_FILE   file with the key that sessions are signed with; required
SHOP_BACKOFFICE_DB     SQLite file of the clerks, their sessions and the admin site's log (backoffice.db)
SHOP_ORDERS_DB         SQLite file of the orders (orders.db), which are read here and changed by orders alone
SHOP_ORDERS_URL        where orders listens (http://127.0.0.1:8001)
SHOP_TOKEN_FILE        file with the token that the shop's services share; required
"""

import os
from pathlib import Path

SECRET_KEY = Path(os.environ["SHOP_SECRET_KEY_FILE"]).read_text(encoding="utf-8").strip()
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "shop.backoffice.urls"
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "shop.backoffice.apps.BackOffice",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": Path(os.environ.get("SHOP_BACKOFFICE_DB", "backoffice.db")),
    },
    "orders": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": Path(os.environ.get("SHOP_ORDERS_DB", "orders.db")).absolute().as_uri() + "?mode=ro",
    },
}
DATABASE_ROUTERS = ["shop.backoffice.apps.OrdersElsewhere"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTHENTICATION_BACKENDS = ["shop.backoffice.authentication.WithGroups"]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.ScryptPasswordHasher"]
SESSION_COOKIE_NAME = "backoffice"
LOGIN_URL = "admin:login"
STATIC_URL = "/static/"
TIME_ZONE = "UTC"
