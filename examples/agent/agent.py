#!/usr/bin/env python3
"""agent.py DIR TASK: a language model works on a task in one VM, by its files alone.

DIR is the VM's directory, as /run/banger/vms/web. The model is asked at $MODEL_URL, an endpoint
for chat completions as OpenAI, llama.cpp and vLLM have it, as the model $MODEL with the key
$MODEL_KEY. It gets three tools, which do nothing outside of the VM:

    run    a shell command in the guest, by exec/
    read   a file of the guest, by fs/
    write  a file of the guest, by fs/

What the model says is printed at the end; what it does is printed as it happens.
"""

import json
import os
import posixpath
import sys
import urllib.request

STEPS = 40  # answers of the model
LIMIT = 16384  # bytes of a tool's result
TIME = "60s"  # for a command


def tool(name, about, **parameters):
    fields = {key: {"type": "string", "description": text} for key, text in parameters.items()}
    schema = {"type": "object", "properties": fields, "required": list(fields)}
    return {"type": "function",
            "function": {"name": name, "description": about, "parameters": schema}}


TOOLS = [
    tool("run", "Run a command with /bin/sh in the VM, as root.", command="the command line"),
    tool("read", "Read a text file of the VM.", path="its absolute path"),
    tool("write", "Write a text file of the VM.", path="its absolute path", text="its new content"),
]


class VM:
    """A VM by its directory."""

    def __init__(self, directory):
        self.directory = os.path.abspath(directory)

    def run(self, command):
        # The session ends with the descriptor, and the command with the session.
        with open(self.directory + "/exec/clone", "r+b", buffering=0) as control:
            session = f"{self.directory}/exec/{control.read(32).decode().strip()}"
            control.write(f"timeout {TIME}\n".encode())
            control.write(("run " + command).encode())
            # Of a longer output the rest is never read. The command would wait to print it.
            with open(session + "/ctl", "wb", buffering=0) as end:
                output, more = head(session + "/data")
                if more:
                    end.write(b"signal KILL\n")
            errors, _ = head(session + "/stderr")
            with open(session + "/status", "rb", buffering=0) as status:
                ended = status.read(64).decode().strip()
        return "\n".join(part for part in (ended, output, errors) if part)

    def read(self, path):
        return head(self.file(path))[0]

    def write(self, path, text):
        with open(self.file(path), "w", encoding="utf-8") as file:
            file.write(text)
        return "written"

    def file(self, path):
        # ".." ends at the guest's root. Links of the guest are never followed (ELOOP).
        return self.directory + "/fs" + posixpath.normpath("/" + path.lstrip("/"))

    def call(self, name, arguments):
        """Uses a tool. What is wrong goes to the model, which can do something about it."""
        try:
            if name not in ("run", "read", "write"):
                return f"error: there is no tool {name}"
            return getattr(self, name)(**json.loads(arguments))
        except (OSError, TypeError, ValueError) as problem:
            return f"error: {problem}{self.reason(problem)}"

    def reason(self, problem):
        """The VM's own sentence about a write that it refused."""
        if not isinstance(problem, OSError):
            return ""
        try:
            with open(self.directory + "/error", encoding="utf-8") as file:
                return " " + file.read().strip()
        except OSError:
            return ""


def head(path):
    """Reads a file to its end or its limit. Returns its text and whether there was more."""
    data = b""
    with open(path, "rb", buffering=0) as file:
        while len(data) <= LIMIT and (part := file.read(LIMIT)):
            data += part
    return data[:LIMIT].decode(errors="replace"), len(data) > LIMIT


def ask(messages):
    body = {"model": os.environ.get("MODEL", "default"), "messages": messages, "tools": TOOLS}
    request = urllib.request.Request(
        os.environ["MODEL_URL"], json.dumps(body).encode(),
        {"Content-Type": "application/json",
         "Authorization": "Bearer " + os.environ.get("MODEL_KEY", "")})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)["choices"][0]["message"]


def printable(text):
    """Text of a model or a guest as a terminal may get it."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: agent.py DIR TASK")
    vm, task = VM(sys.argv[1]), sys.argv[2]
    messages = [
        {"role": "system", "content": "You work in a Linux VM of your own, by the tools."},
        {"role": "user", "content": task},
    ]
    for _ in range(STEPS):
        message = ask(messages)
        messages.append(message)
        if not message.get("tool_calls"):
            print(printable(message.get("content") or ""))
            return
        for wanted in message["tool_calls"]:
            call = wanted["function"]
            result = vm.call(call["name"], call["arguments"])
            shown = printable(f"{call['name']} {call['arguments']}: {result}")
            print("\n  ".join(shown.splitlines()[:8]), file=sys.stderr)
            messages.append({"role": "tool", "tool_call_id": wanted["id"], "content": result})
    sys.exit(f"agent.py: not done after {STEPS} answers")


if __name__ == "__main__":
    main()
