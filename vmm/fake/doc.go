// Package fake is a driver whose machines are only remembered, for tests and for trying banger out.
//
// A machine lives in the daemon: it has no process of its own (its Process is the
// daemon's), no goroutine, and at most one timer. What must survive the daemon's death
// is kept in fake.json in the VM's directory, so that Adopt finds it again.
//
// Words in the VM's cmdline script a machine; other words are ignored:
//
//	fake.boot=200ms                  Start takes that long
//	fake.start=fail                  Start fails
//	fake.agent=never                 there is no agent
//	fake.agent=hang                  the agent never answers
//	fake.agent=slow:1s               the agent answers after 1 s
//	fake.agent=deaf:2s-5s            the agent answers nothing from 2 s to 5 s of running
//	fake.listen=80/tcp/nginx,53/udp/dns/dns%20-v
//	                                 listeners: port, protocol, process and command, with %XX for
//	                                 any byte; nothing really listens
//	fake.stop=hang                   the agent never answers a request to power off
//	fake.stop=ignore                 the agent accepts it and does nothing
//	fake.poweroff=3s                 the guest powers itself off after 3 s of running
//	fake.exit=5s:reason              the VMM dies after 5 s of running
//	fake.panic=3s                    the guest's kernel panics after 3 s of running
//	fake.full=3s                     after 3 s of running a disk finds no space, once
//	fake.snapshot=200ms              a snapshot of its disks takes that long
//	fake.snapshot=fail               a snapshot fails half made
//	fake.freeze=hang                 the agent never answers a request to hold the file systems still
//	fake.disk=N                      N bytes of the system disk's overlay are allocated
//
// Commands are a few words of a shell: echo, cat, env, exit, false, kill -SIGNAL $$, pwd, sleep,
// stty size, true and yes. /bin/sh -c runs several, divided by `;` and with >&2 behind one.
//
// Disks are plain files under their usual names, and tests may write to them. A snapshot is a
// directory of copies beside them.
//
// The guest's files are a directory of the host, empty at each start, which is served as by an
// agent. A guest with a disk reads and writes a page of it each second. The console echoes lines
// and obeys `poweroff` and `panic`.
package fake
