#!/usr/bin/env python3
"""A harness in Python, standard library only: what an instance does when it is told to fail.

Usage: harness.py CONTROL-URL, such as http://127.0.0.1:6080
"""
import http.client, json, ssl, sys, threading, urllib.request

control = sys.argv[1] + "/v1"


def call(method, path, body=None):
    request = urllib.request.Request(control + path, method=method, data=None if body is None else json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


instance = call("GET", "/instance")
trust = ssl.create_default_context(cadata=instance["root"])


def cacerts():
    connection = http.client.HTTPSConnection(instance["endpoint"], instance["port"], context=trust, timeout=10)
    try:
        connection.request("GET", "/.well-known/est/cacerts")
        return connection.getresponse().status
    finally:
        connection.close()


events = urllib.request.urlopen(control + "/events", timeout=10)
before = call("GET", "/stats")["calls"].get("cacerts", 0)
assert cacerts() == 200
call("POST", "/faults", {"call": "cacerts", "kind": "refuse", "status": 503, "problem": "unavailable", "seconds": 30, "times": 1})
waiting = threading.Thread(target=call, args=("GET", f"/wait?call=cacerts&count={before + 3}&timeout=10"))
waiting.start()
assert cacerts() == 503
assert cacerts() == 200
waiting.join()
seen = []
while len(seen) < 3:
    line = events.readline().decode()
    if line.startswith("data: ") and json.loads(line[6:]).get("call") == "cacerts":
        seen.append(json.loads(line[6:])["status"])
assert seen == [200, 503, 200], seen
print("refused once, as told")
