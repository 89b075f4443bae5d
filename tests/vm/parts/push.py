# From a key and a folder to a page that answers; `namespace` is where it lives. Runs before what a test has to say.
import json
import re

start_all()
host.wait_for_unit("seed-agent.service")
host.wait_for_unit("seed-serve.service")
person.wait_for_unit("multi-user.target")

with subtest("the host has what the module promises"):
    host.succeed("seed check-config")
    host.succeed("stat -c %U:%a /var/lib/seed/ssh | grep -x seed:700")
    host.fail("runuser -u nobody -- seed status")

with subtest("a push becomes a repository"):
    code = re.search(r"[a-z2-7]{26}", host.succeed("seed invite new")).group(0)
    person.succeed(
        "ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519",
        "git config --global user.name You && git config --global user.email you@example.org",
        "git init -q -b main /root/app",
        f"cp {flake} /root/app/flake.nix && cp {meta} /root/app/meta.json",
        "cp /root/.ssh/id_ed25519.pub /root/app/.authorized_keys",
        "git -C /root/app add -A && git -C /root/app commit -q -m 'A page'",
        "git -C /root/app remote add origin seed.example:app.git",
    )
    person.succeed("git -C /root/app push -u origin main 2>&1", timeout=120)

with subtest("planting it boots an instance"):
    person.succeed(f"ssh seed.example plant silo:app {code} 2>&1", timeout=1800)
    status = person.succeed("ssh seed.example status --json")
    namespace = re.search(r"s-[a-z2-7]{12}", status).group(0)
    unit = f"seed-vm@{namespace}-web.service"
    host.wait_for_unit(unit)

with subtest("its page answers under its name"):
    url = f"http://web.{namespace}.seed.example/"
    assert "Hello from Seed" in person.wait_until_succeeds(f"curl -sSf -m 10 {url}", timeout=120)
