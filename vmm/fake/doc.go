// Package fake is a driver of machines that exist in memory only, for tests and for trials.
//
// A machine lives in the daemon: it has no process of its own (its Process is the
// daemon's), no goroutine, and at most one timer. fake.json in the VM's directory holds
// the state that Adopt restores after the daemon's death.
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
//	                                 the listeners that the agent reports: port, protocol,
//	                                 process and command, %XX for any byte
//	fake.stop=hang                   the agent never answers a request to power off
//	fake.stop=ignore                 the agent accepts it and does nothing
//	fake.poweroff=3s                 the guest powers itself off after 3 s of running
//	fake.reboot=3s                   the guest reboots after 3 s of running, each time
//	fake.exit=5s:reason              the VMM dies after 5 s of running
//	fake.panic=3s                    the guest's kernel panics after 3 s of running
//	fake.full=3s                     after 3 s of running a disk is full; the machine stops, once
//	fake.snapshot=200ms              a snapshot of its disks takes that long
//	fake.snapshot=fail               a snapshot fails half made
//	fake.freeze=hang                 the agent never answers a request to freeze file systems
//	fake.drift=-0.1                  the guest's clock loses a tenth of the time
//	fake.clock=old                   the agent cannot set it, as those of earlier versions
//	fake.clock=hang                  the agent never answers about it
//	fake.clock=ntp                   a program in the guest keeps it
//	fake.limit=fail                  a change of its limits or of its memory's target fails
//	fake.disk=N                      N bytes of the system disk's overlay are allocated
//
// The commands of a guest are built in: echo, cat, env, exit, false, kill -SIGNAL $$, pwd, sleep,
// stty size, true and yes. They work as in a shell. /bin/sh -c runs several of them, separated by
// `;`, and a command may end with >&2.
//
// Disks are plain files under their usual names, and a test may write to them. A snapshot is a
// directory of copies beside them. The guest's files are in a directory of the host, empty at each
// start.
// A guest reads and writes a page of its disk each second. The console echoes typed lines, and the
// lines `poweroff`, `reboot` and `panic` end the machine.
package fake
