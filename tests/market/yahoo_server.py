"""Yahoo's chart answers from a loopback address."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

NOT_FOUND = {
    "chart": {
        "result": None,
        "error": {"code": "Not Found", "description": "No data found, symbol may be delisted"},
    }
}


def made(**options):
    """An answer of the same shape with prices of our own: three days of a stock."""
    days = [1704205800, 1704292200, 1704378600]  # 14:30 UTC, the opening in New York
    quote = {name: [10.0, 11.0, 12.0] for name in ("open", "high", "low", "close")} | {"volume": [5, 6, 7]}
    meta = {"instrumentType": "EQUITY", "exchangeName": "NMS", "exchangeTimezoneName": "America/New_York",
            "dataGranularity": "1d", "currency": "USD"}  # fmt: skip
    result = {
        "meta": meta,
        "timestamp": days,
        "indicators": {"quote": [quote], "adjclose": [{"adjclose": [9.0, 10.0, 12.0]}]},
    }
    return {"chart": {"result": [result | options], "error": None}}


@contextmanager
def serve():
    """What the loopback server says next, and what it was asked."""
    state = {"body": made(), "status": 200, "date": "Thu, 20 Feb 2025 11:47:40 GMT", "asked": []}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            url = urlsplit(self.path)
            state["asked"].append((unquote(url.path), dict(parse_qsl(url.query))))
            body = json.dumps(state["body"]).encode()
            self.send_response_only(state["status"])
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": len(body),
                "Date": state["date"],
            }.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    state["url"] = f"http://127.0.0.1:{http.server_port}"
    yield state
    http.shutdown()
    http.server_close()
