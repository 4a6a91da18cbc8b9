"""The shape of the Python service that this project replaces: FastAPI under gunicorn with uvicorn workers.

It checks the signature over the raw bytes, parses the JSON, puts what is to be done into a background task and
answers 200 before anything is stored: what is in memory when it dies is lost. Nothing it would do afterwards
(MongoDB, the AI, the Graph API) is done here, so its figures are better than the service's own.
"""

import hashlib
import hmac
import json
import os

from fastapi import BackgroundTasks, FastAPI, Request, Response

SECRET = os.environ["WHATSAPP_APP_SECRET"].encode()
app = FastAPI()


def is_signed(header: str | None, body: bytes) -> bool:
    expected = "sha256=" + hmac.new(SECRET, body, hashlib.sha256).hexdigest()
    return header is not None and hmac.compare_digest(expected, header)


async def process(payload: dict) -> None:
    """Walks through the messages and statuses, as the original does before it looks up the business."""
    for entry in payload.get("entry", []):
        for change in entry.get("changes", []):
            value = change.get("value", {})
            phone_number_id = value.get("metadata", {}).get("phone_number_id")
            for item in value.get("messages", []) + value.get("statuses", []):
                _ = (phone_number_id, item.get("id"), item.get("timestamp"))


@app.post("/webhook")
async def webhook(request: Request, background_tasks: BackgroundTasks) -> Response:
    body = await request.body()
    if not is_signed(request.headers.get("x-hub-signature-256"), body):
        return Response(status_code=401)
    background_tasks.add_task(process, json.loads(body))
    return Response(content='{"status":"success"}', media_type="application/json")
