package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"
)

// bangerGID is the group whose members may make VMs.
const bangerGID = 40100

// testUsers exist in the suite's own mount namespace only.
var testUsers = map[string]struct {
	uid    uint32
	member bool // of the group banger
}{
	"alice": {40001, true},
	"bob":   {40002, true},
	"eve":   {40003, false},
}

// addUsers adds testUsers to the account files that this mount namespace shows. The files in dir
// stay until the namespace ends.
func addUsers(dir string) error {
	users, groups := "", fmt.Sprintf("banger:x:%d:alice,bob\n", bangerGID)
	for name, u := range testUsers {
		users += fmt.Sprintf("%s:x:%d:%d::/nonexistent:/bin/bash\n", name, u.uid, u.uid)
		groups += fmt.Sprintf("%s:x:%d:\n", name, u.uid)
	}
	for path, lines := range map[string]string{"/etc/passwd": users, "/etc/group": groups} {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		own := filepath.Join(dir, filepath.Base(path))
		if err := os.WriteFile(own, append(text, lines...), 0o644); err != nil {
			return err
		}
		if err := syscall.Mount(own, path, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("cannot show %s as %s: %w", own, path, err)
		}
	}
	return nil
}

// credential returns the uid and groups of a test user; nil for root.
func credential(name string) (*syscall.Credential, error) {
	if name == "root" {
		return nil, nil
	}
	u, ok := testUsers[name]
	if !ok {
		return nil, fmt.Errorf("there is no test user %q", name)
	}
	c := &syscall.Credential{Uid: u.uid, Gid: u.uid}
	if u.member {
		c.Groups = []uint32{bangerGID}
	}
	return c, nil
}

// asCmd runs a script as one of testUsers: as alice 'script'.
func asCmd(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: as USER 'script'")
	}
	c, err := credential(args[0])
	ts.Check(err)
	argv := []string{"bash", "-c", args[1]}
	if c != nil {
		groups := "--clear-groups"
		if len(c.Groups) > 0 {
			groups = fmt.Sprintf("--groups=%d", c.Groups[0])
		}
		uid, gid := fmt.Sprintf("--reuid=%d", c.Uid), fmt.Sprintf("--regid=%d", c.Gid)
		argv = append([]string{"setpriv", uid, gid, groups, "--"}, argv...)
	}
	expect(ts, neg, ts.Exec(argv[0], argv[1:]...))
}
