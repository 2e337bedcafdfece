// Package integration is banger's suite as a user would type it. Scripts in testdata run against
// bangerd in its own process, on a real mount. They run with the fake driver and, where QEMU and
// the built-in image are there, with real VMs.
//
// As root the tests run in a network namespace of their own, and "ip netns exec" adds a
// private mount namespace. So bridges, taps and mounts vanish with it, also after a failure.
//
// A script has these variables:
//
//	B         the directory of bangerd, banger and banger-agent, also first in PATH
//	M         the mount
//	S         the state directory
//	VMM       the driver's name
//	DOCS      the directory docs/ of the sources
//	EXAMPLES  the directory examples/ of the sources
//
// It has these commands beside testscript's own:
//
//	as USER 'script'        run it with bash as alice, bob, eve or root
//	bangerd start [flags]   start the daemon and wait until its tree is mounted
//	bangerd stop            SIGTERM, and wait for its end
//	bangerd kill9           SIGKILL
//	clouddisk FILE          copy the suite's cloud image there
//	disk SIZE               put the state directory on an ext4 of its own
//	disk freeze|thaw        freeze and thaw that ext4
//	oci FILE DIR CONFIG     make FILE, an OCI image of the files in DIR with that configuration
//	sh 'script'             run it with bash; stdout and stderr check its output
//	static NAME             build testdata/NAME for guests, as NAME in the current directory
//	waitfor 'script' [10s]  repeat it with bash until it succeeds
//	world                   make a network namespace, $WORLD, at the far end of the link $UPLINK;
//	                        $HERE and $HERE6 are the near addresses, $THERE and $THERE6 the far ones
//
// In a script of sh, only the last command's status counts. A check before it ends in "|| exit".
//
// stdout and stderr match lines with ^ and $, and the whole output with \A and \z.
//
// Scripts named fake_*.txtar and real_*.txtar run on that driver only.
package integration
