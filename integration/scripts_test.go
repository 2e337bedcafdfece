package integration

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs every script of testdata on every driver that it is for, side by side.
func TestScripts(t *testing.T) {
	t.Parallel()
	runScripts(t, false)
}

// TestScriptsAlone runs the scripts that would harm others. They run one after the other, before
// all that runs side by side.
func TestScriptsAlone(t *testing.T) { runScripts(t, true) }

func runScripts(t *testing.T, alone bool) {
	scripts, err := filepath.Glob("testdata/*.txtar")
	must(t, err)
	for _, driver := range []struct{ name, vmm, other string }{
		{"fake", "fake", "real_"}, {"real", "qemu", "fake_"},
	} {
		t.Run(driver.name, func(t *testing.T) {
			if ok, cure := realVMs(); driver.name == "real" && !ok {
				t.Skip(cure)
			}
			var files []string
			for _, s := range scripts {
				text, err := os.ReadFile(s)
				must(t, err)
				marked := bytes.HasPrefix(text, []byte("# alone: "))
				if !strings.HasPrefix(filepath.Base(s), driver.other) && marked == alone {
					files = append(files, s)
				}
			}
			if !alone {
				testscript.Run(t, params(t, files, driver.vmm))
				return
			}
			for _, s := range files {
				t.Run("", func(t *testing.T) {
					testscript.Run(t, params(t, []string{s}, driver.vmm))
				})
			}
		})
	}
}

// long adds tests that need minutes each: many bytes and files pass through guests.
var long = flag.Bool("long", false, "also the tests that take minutes each")

var update = flag.Bool("update", false, "write what the scripts' cmp finds into their golden files")

func params(t *testing.T, files []string, vmm string) testscript.Params {
	return testscript.Params{
		Files:         files,
		UpdateScripts: *update,
		Setup: func(e *testscript.Env) error {
			t.Cleanup(func() { os.Remove(filepath.Dir(e.WorkDir)) }) // testscript leaves it
			if err := openUp(e.WorkDir); err != nil {
				return err
			}
			d, err := newDaemon(e.WorkDir)
			if err != nil {
				return err
			}
			if err := d.addImage(vmm); err != nil {
				return err
			}
			e.Setenv("M", d.mount)
			e.Setenv("S", d.state)
			e.Setenv("B", bin)
			e.Setenv("EXAMPLES", filepath.Join(module, "examples"))
			e.Setenv("DOCS", filepath.Join(module, "docs"))
			e.Setenv("VMM", vmm)
			e.Setenv("LC_ALL", "C")
			e.Setenv("BANGER_MOUNT", d.mount)
			e.Setenv("PATH", bin+string(os.PathListSeparator)+e.Getenv("PATH"))
			e.Values[daemonKey{}] = d
			e.Defer(d.cleanup)
			return nil
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "root":
				return os.Geteuid() == 0, nil
			case "real":
				return vmm == "qemu", nil
			}
			return false, os.ErrInvalid
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"as":        asCmd,
			"bangerd":   bangerdCmd,
			"clouddisk": cloudDiskCmd,
			"disk":      diskCmd,
			"oci":       ociCmd,
			"sh":        shCmd,
			"static":    staticCmd,
			"waitfor":   waitforCmd,
			"world":     worldCmd,
		},
	}
}

type daemonKey struct{}

func bangerdCmd(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) == 0 {
		ts.Fatalf("usage: bangerd start|stop|kill9 [flags]")
	}
	d := ts.Value(daemonKey{}).(*daemon)
	var err error
	switch args[0] {
	case "start":
		err = d.start(args[1:]...)
	case "stop":
		err = d.signal(syscall.SIGTERM)
	case "kill9":
		err = d.signal(syscall.SIGKILL)
	default:
		ts.Fatalf("unknown: bangerd %s", args[0])
	}
	expect(ts, neg, err)
}

// diskCmd puts the state directory on an ext4 of its own, and freezes and thaws that.
func diskCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: disk SIZE|freeze|thaw")
	}
	d := ts.Value(daemonKey{}).(*daemon)
	switch args[0] {
	case "freeze":
		// Fails where the script has thawed it.
		ts.Defer(func() { _ = exec.Command("fsfreeze", "-u", d.state).Run() })
		ts.Check(ts.Exec("fsfreeze", "-f", d.state))
	case "thaw":
		ts.Check(ts.Exec("fsfreeze", "-u", d.state))
	default:
		image, old := d.state+".img", d.state+".old"
		ts.Check(os.Rename(d.state, old))
		ts.Check(os.Mkdir(d.state, 0o711))
		ts.Check(ts.Exec("truncate", "-s", args[0], image))
		ts.Check(ts.Exec("mke2fs", "-q", "-t", "ext4", "-d", old, image))
		ts.Check(ts.Exec("mount", "-o", "loop", image, d.state))
	}
}

func shCmd(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: sh 'script'")
	}
	expect(ts, neg, ts.Exec("bash", "-c", args[0]))
}

// staticCmd builds a program of testdata for guests, as $WORK/NAME.
func staticCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: static NAME")
	}
	ts.Check(buildStaticTo(ts.MkAbs(args[0]), "./integration/testdata/"+args[0]))
}

func waitforCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: waitfor 'script' [time]")
	}
	limit := 10 * time.Second
	if len(args) == 2 {
		var err error
		limit, err = time.ParseDuration(args[1])
		ts.Check(err)
	}
	for deadline := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		err := ts.Exec("bash", "-c", args[0])
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("not so after %v: %s: %v", limit, args[0], err)
		}
	}
}

var worlds atomic.Int32

// worldCmd makes another network namespace and a link to it. That namespace has no route to the
// networks behind this one.
func worldCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: world")
	}
	n := worlds.Add(1)
	world, link := fmt.Sprintf("banger-world-%d-%d", os.Getpid(), n), fmt.Sprintf("wan%d", n)
	here, there := fmt.Sprintf("10.99.%d.1", n), fmt.Sprintf("10.99.%d.2", n)
	here6, there6 := fmt.Sprintf("2001:db8:99:%d::1", n), fmt.Sprintf("2001:db8:99:%d::2", n)
	ts.Check(ts.Exec("ip", "netns", "add", world))
	ts.Defer(func() { _ = exec.Command("ip", "netns", "delete", world).Run() }) // and the link
	for _, args := range []string{
		"link add " + link + " type veth peer name wan netns " + world,
		"addr add " + here + "/24 dev " + link, "addr add " + here6 + "/64 dev " + link + " nodad",
		"link set " + link + " up",
		"-n " + world + " addr add " + there + "/24 dev wan",
		"-n " + world + " addr add " + there6 + "/64 dev wan nodad",
		"-n " + world + " link set wan up", "-n " + world + " link set lo up",
	} {
		ts.Check(ts.Exec("ip", strings.Fields(args)...))
	}
	for k, v := range map[string]string{"WORLD": world, "UPLINK": link,
		"HERE": here, "THERE": there, "HERE6": here6, "THERE6": there6} {
		ts.Setenv(k, v)
	}
}

func expect(ts *testscript.TestScript, neg bool, err error) {
	if neg && err == nil {
		ts.Fatalf("unexpected success")
	}
	if !neg && err != nil {
		ts.Fatalf("unexpected failure: %v", err)
	}
}
