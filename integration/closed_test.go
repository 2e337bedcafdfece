package integration

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"banger/fs"
)

// userCommand is bash with a script, run by one of testUsers; its first arguments are args.
func userCommand(t *testing.T, user, script string, args ...string) *exec.Cmd {
	t.Helper()
	c := exec.Command("bash", append([]string{"-c", script, "bash"}, args...)...)
	credential, err := credential(user)
	must(t, err)
	c.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	return c
}

// publicKey is of nobody.
const publicKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPfmYON19i39GhbIaOElYGqSbngqvKwDwsjNi+8M+gKC" +
	" hunter2"

// opens prints each path of its input that it can open to read, or else to write.
const opens = `cd "$1" && while read -r path; do
	((: < "$path") || (: >> "$path")) 2> /dev/null && echo "$path"
done; true`

// TestClosed tries every file below a VM's directory with the rights of others.
func TestClosed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root serves several users: run the suite as root")
	}
	d := testDaemon(t, "fake")
	const prepare = `set -e; cd "$1"; mkdir vms/a; echo fake > vms/a/vmm
		echo quiet hunter2 > vms/a/cmdline
		echo 1M > vms/a/disk; echo 18080:80 > vms/a/publish; mkdir vms/a/snapshots/hunter2
		echo "$2" > vms/a/authorized_keys
		for f in config authorized_keys publish state; do ! echo "cpus=hunter2" > vms/a/$f; done
		echo hunter2 > vms/a/restore
		echo start > vms/a/state; cat vms/a/exec/clone`
	session, err := userCommand(t, "alice", prepare, d.mount, publicKey).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, session)
	}
	place := strings.NewReplacer("vms/NAME/", "vms/a/", "snapshots/NAME", "snapshots/hunter2",
		"PORT", "80", "exec/N", "exec/"+strings.TrimSpace(string(session)))
	var below, top []string
	for _, row := range fs.Doc() {
		switch path := place.Replace(row.Path); {
		case strings.HasPrefix(path, "vms/a/"):
			below = append(below, path)
		case !strings.Contains(path, "/"):
			top = append(top, path)
		}
	}
	try := func(user string, paths []string) string {
		t.Helper()
		c := userCommand(t, user, opens, d.mount)
		c.Stdin = strings.NewReader(strings.Join(paths, "\n") + "\n")
		out, err := c.Output()
		if err != nil {
			t.Errorf("%s: %v", user, err)
		}
		return string(out)
	}
	for _, user := range []string{"bob", "eve"} {
		if got := try(user, below); got != "" {
			t.Errorf("%s opens of another's VM:\n%s", user, got)
		}
	}
	// The owner opens what does not block, so that the refusals above are of rights.
	const plain = "vms/a/config\nvms/a/console\nvms/a/exec\nvms/a/log\n"
	if got := try("alice", strings.Fields(plain)); got != plain {
		t.Errorf("the owner opens %q", got)
	}
	// Files that everybody reads do not contain what she wrote.
	const look = `cd "$1" && shift && cat "$@" 2> /dev/null | grep hunter2; true`
	out, err := userCommand(t, "eve", look, append([]string{d.mount}, top...)...).Output()
	if err != nil || len(out) != 0 {
		t.Errorf("eve reads %s (%v)", out, err)
	}
}
