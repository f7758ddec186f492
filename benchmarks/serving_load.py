"""What Locust's clients do: each asks for the classes of a picture, again and again. serving.py runs it.

PICTURES: a folder of them. RATE: requests a second of all clients together; without it each asks at once again. With
it, one in 50 pictures is damaged and must be refused, and one client in 100 hangs up before its answer.
"""

import base64
import json
import os
import random
import socket
from pathlib import Path
from urllib.parse import urlsplit

from locust import FastHttpUser, constant_throughput, events, task

RATE = float(os.environ.get("RATE", 0))
PATH = "/v1/predict"
HEADERS = {"content-type": "application/json"}
DAMAGED, GONE = 0.02, 0.01  # of the requests


def request_of(data: bytes) -> bytes:
    return json.dumps({"images": [base64.b64encode(data).decode()]}).encode()


PICTURES = [path.read_bytes() for path in sorted(Path(os.environ["PICTURES"]).iterdir())]
GOOD = [request_of(data) for data in PICTURES]
BAD = [request_of(data[: len(data) // 2]) for data in PICTURES]


class Client(FastHttpUser):
    def wait_time(self) -> float:
        if not RATE:
            return 0.0
        return constant_throughput(RATE / self.environment.parsed_options.num_users)(self)

    @task
    def predict(self) -> None:
        chance = random.random() if RATE else 1.0
        if chance < GONE:
            self.hang_up()
        elif chance < GONE + DAMAGED:
            with self.client.post(
                PATH, data=random.choice(BAD), headers=HEADERS, name="damaged", catch_response=True
            ) as answer:
                if answer.status_code == 400 and "damaged" in answer.text:
                    answer.success()
                else:
                    answer.failure(f"{answer.status_code} {answer.text}")
        else:
            self.client.post(PATH, data=random.choice(GOOD), headers=HEADERS, name="good")

    def hang_up(self) -> None:
        address = urlsplit(self.host)
        body = random.choice(GOOD)
        head = (
            f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(head.encode() + body[: random.choice((len(body), len(body) // 2))])
        events.request.fire(
            request_type="POST", name="gone", response_time=0, response_length=0, exception=None, context={}
        )
