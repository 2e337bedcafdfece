package integration

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const inNamespace = "BANGER_TEST_NETNS"

// bin holds the programs under test, module is the module's directory.
var bin, module string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if what := os.Getenv(bareEnv); what != "" {
		if err := serveBare(what); err != nil {
			return fail(err)
		}
		return 0
	}
	if paths := os.Getenv(heldEnv); paths != "" {
		readForEver(strings.Split(paths, ":"))
	}
	flag.Parse()
	if os.Geteuid() == 0 && os.Getenv(inNamespace) == "" {
		return reexec()
	}
	if os.Geteuid() == 0 {
		if err := mountCgroups(); err != nil {
			return fail(err)
		}
	}
	dir, err := os.MkdirTemp("", "banger-it-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(dir)
	// Daemons of other uids are tested with these programs too.
	if err := os.Chmod(dir, 0o755); err != nil {
		return fail(err)
	}
	if os.Geteuid() == 0 {
		if err := addUsers(dir); err != nil {
			return fail(err)
		}
	}
	bin = dir
	if module, err = filepath.Abs(".."); err != nil {
		return fail(err)
	}
	if err := buildPrograms(module, bin); err != nil {
		return fail(err)
	}
	// Daemons compare their agent with that of the image that `make image` has made.
	agent, err := os.ReadFile(filepath.Join(module, "bin", "banger-agent"))
	if err == nil {
		err = os.WriteFile(filepath.Join(bin, "banger-agent"), agent, 0o755)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail(err)
	}
	return m.Run()
}

// buildPrograms builds the programs of a source tree into dir.
func buildPrograms(tree, dir string) error {
	for _, name := range []string{"bangerd", "banger", "banger-agent"} {
		args := []string{"build", "-o", filepath.Join(dir, name)}
		cgo := "CGO_ENABLED=0"
		if raceEnabled && name == "bangerd" {
			args = append(args, "-race")
			cgo = "CGO_ENABLED=1"
		}
		if *profiles != "" {
			args = append(args, "-tags", "profile")
		}
		cmd := exec.Command("go", append(args, "./cmd/"+name)...)
		cmd.Dir = tree
		cmd.Env = append(os.Environ(), cgo)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("cannot build %s: %w\n%s", name, err, out)
		}
	}
	return nil
}

// reexec runs this test again in a network namespace made for it.
func reexec() int {
	ns := fmt.Sprintf("banger-test-%d", os.Getpid())
	if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
		err = fmt.Errorf("cannot make a network namespace (apt install iproute2): %w\n%s", err, out)
		return fail(err)
	}
	defer func() {
		if out, err := exec.Command("ip", "netns", "delete", ns).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "cannot remove the network namespace %s: %v\n%s", ns, err, out)
		}
	}()
	// "ip netns exec" mounts this directory's resolv.conf over the host's, so that scripts may
	// write name servers (ip-netns(8)).
	etc := filepath.Join("/etc/netns", ns)
	defer func() {
		_ = os.RemoveAll(etc)
		_ = os.Remove(filepath.Dir(etc)) // only if nobody else has something there
	}()
	if err := os.MkdirAll(etc, 0o755); err != nil {
		return fail(err)
	}
	// It begins as the host's, for what goes out by the namespace that the test was started in.
	resolvers, err := os.ReadFile("/etc/resolv.conf")
	if err == nil {
		err = os.WriteFile(filepath.Join(etc, "resolv.conf"), resolvers, 0o644)
	}
	if err != nil {
		return fail(err)
	}
	out, err := exec.Command("ip", "-n", ns, "link", "set", "lo", "up").CombinedOutput()
	if err != nil {
		return fail(fmt.Errorf("cannot set lo up: %w\n%s", err, out))
	}
	cmd := exec.Command("ip", append([]string{"netns", "exec", ns}, os.Args...)...)
	cmd.Env = append(os.Environ(), inNamespace+"="+ns)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = cmd.Run()
	if cmd.ProcessState != nil {
		return cmd.ProcessState.ExitCode()
	}
	return fail(err)
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}
