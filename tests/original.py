"""Writes and reads `businesses` documents as the Python service and the Node backend beside it do: pymongo, and
Fernet of `cryptography` with key = urlsafe-base64(SHA-256(ENCRYPTION_SECRET)), a token stored as the hex of the
Fernet token's bytes. Independent of the program under test.

    original.py URI write   documents as extended JSON lines on standard input. `token` becomes whatsappAccessToken,
                            encrypted; fields not given get the usual values; a field given as "<absent>" is left out
    original.py URI many N FROM
                            N businesses biz0.. with the numbers FROM.. and the tokens token-0..
    original.py URI set SUBDOMAIN
                            sets the fields of the JSON object on standard input; `token` as above
    original.py URI remove SUBDOMAIN
    original.py URI index NAME FIELD
                            makes an index of that name on one field
    original.py URI tokens  a JSON object: subdomain -> decrypted token, or null where the secret opens nothing
    original.py URI dump    all documents as extended JSON lines

The secret is in ENCRYPTION_SECRET, the database in the URI.
"""

import base64
import datetime
import hashlib
import json
import os
import sys

from bson import ObjectId, json_util
from cryptography.fernet import Fernet, InvalidToken
from pymongo import MongoClient


def fernet():
    secret = os.environ["ENCRYPTION_SECRET"].encode("utf-8")
    return Fernet(base64.urlsafe_b64encode(hashlib.sha256(secret).digest()))


def encrypt(token):
    return fernet().encrypt(token.encode("utf-8")).hex()


def decrypt(stored):
    return fernet().decrypt(bytes.fromhex(stored)).decode("utf-8")


def document(given):
    now = datetime.datetime.now(datetime.timezone.utc)
    name = given.get("subDomain", "nobody")
    made = {
        "_id": ObjectId(),
        "name": "The %s" % name,
        "subDomain": name,
        "wabaId": "1001",
        "whatsappPhoneNumberIds": [],
        "whatsappAccessToken": None,
        "whatsappRefreshToken": None,
        "whatsappTokenExpiresAt": now + datetime.timedelta(days=60),
        "whatsappEnabled": True,
        "isActive": True,
        "owner": ObjectId(),
        "settings": {"greeting": "Hello \N{WAVING HAND SIGN}", "hours": [{"day": 1, "open": "09:00"}]},
        "createdAt": now,
        "updatedAt": now,
        "__v": 0,
    }
    made.update(fields(given))
    return {key: value for key, value in made.items() if value != "<absent>"}


def fields(given):
    given = dict(given)
    token = given.pop("token", None)
    if token is not None:
        given["whatsappAccessToken"] = encrypt(token)
    return given


def main(uri, command, *arguments):
    client = MongoClient(uri, serverSelectionTimeoutMS=10000, retryWrites=False)
    businesses = client.get_default_database()["businesses"]
    if command == "write":
        lines = [json_util.loads(line) for line in sys.stdin if line.strip()]
        businesses.insert_many([document(given) for given in lines])
    elif command == "many":
        count, start = int(arguments[0]), int(arguments[1])
        businesses.insert_many(
            [
                document(
                    {
                        "subDomain": "biz%d" % n,
                        "whatsappPhoneNumberIds": [str(start + n)],
                        "token": "token-%d" % n,
                    }
                )
                for n in range(count)
            ]
        )
    elif command == "set":
        changed = businesses.update_one(
            {"subDomain": arguments[0]}, {"$set": fields(json_util.loads(sys.stdin.read()))}
        )
        assert changed.matched_count == 1, "there is no %s" % arguments[0]
    elif command == "remove":
        assert businesses.delete_one({"subDomain": arguments[0]}).deleted_count == 1
    elif command == "index":
        businesses.create_index([(arguments[1], 1)], name=arguments[0])
    elif command == "tokens":
        tokens = {}
        for business in businesses.find():
            try:
                tokens[business["subDomain"]] = decrypt(business["whatsappAccessToken"])
            except (InvalidToken, ValueError):
                tokens[business["subDomain"]] = None
        print(json.dumps(tokens))
    elif command == "dump":
        for business in businesses.find().sort("_id", 1):
            print(json_util.dumps(business, sort_keys=True))
    else:
        sys.exit("unknown command " + command)


main(*sys.argv[1:])
