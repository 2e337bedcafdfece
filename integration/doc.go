// Package integration is banger's suite as a user would type it: scripts in testdata run against bangerd in its own
// process, on a real mount, once with the fake driver and, where QEMU and the built-in image are there, once with real VMs.
//
// As root the tests run inside a network namespace of their own, which "ip netns exec" also gives a private mount
// namespace, so that bridges, taps and mounts go away with it, also after a failure.
//
// A script finds these variables: M (the mount), S (the state directory), VMM (the driver's name), B (a directory with
// bangerd, banger and banger-agent, also first in PATH). And these commands beside testscript's own:
//
//	bangerd start [flags]      start the daemon and wait until its tree is mounted
//	bangerd stop               SIGTERM, and wait for its end
//	bangerd kill9              SIGKILL
//	clouddisk FILE             copy the suite's cloud image there
//	disk SIZE|freeze|thaw     put the state directory on an ext4 of its own; freeze and thaw it
//	sh 'script'                run it with bash; its output is there for stdout and stderr
//	static NAME                build the program testdata/NAME for guests, as NAME in the current directory
//	waitfor 'script' [10s]     repeat it with bash until it succeeds
//	world                      make another network namespace, $WORLD, at the far end of the link $UPLINK: $HERE and $HERE6 are this side's
//	                           addresses, $THERE and $THERE6 the far one's
//
// Scripts named fake_*.txtar and real_*.txtar run on that driver only.
package integration
