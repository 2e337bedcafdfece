package integration

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/integration/faultfs"
)

var faultEvery = flag.Int("faults.every", 0,
	"TestFaults and TestPowerCut try one point in so many (default: a sample of a minute)")

// causes are what the sentence about a disk's error says.
var causes = map[syscall.Errno]*regexp.Regexp{
	syscall.ENOSPC: regexp.MustCompile(`(?i)no space|is full`),
	syscall.EIO:    regexp.MustCompile(`(?i)input/output error|disk I/O error`),
	syscall.EROFS:  regexp.MustCompile(`(?i)read-only file system`),
}

// stateLine is what a picture says of the state of a VM or image of faultCommands.
var stateLine = regexp.MustCompile(`(vms/xweb/state|images/xapp/status):(\w+).*`)

// layeredDaemon starts a daemon whose state directory is below a layer. The directory itself is
// returned too: this process reads it there.
func layeredDaemon(t *testing.T) (*daemon, *faultfs.Layer, string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root mounts: run the suite as root")
	}
	d, err := newDaemon(t.TempDir())
	must(t, err)
	must(t, openUp(d.state))
	below := filepath.Join(filepath.Dir(d.state), "below")
	must(t, os.Mkdir(below, 0o711))
	must(t, (&daemon{state: below}).addImage("fake"))
	layer, err := faultfs.Mount(below, d.state)
	must(t, err)
	t.Cleanup(func() {
		layer.Lift()
		d.cleanup()
		_ = layer.Unmount() // cleanup has detached it
	})
	return d, layer, below
}

// TestFaults lets each change of the state directory fail in turn, for each command. The command
// fails with a sentence that names the cause, and all is as before; or it succeeds. The daemon goes
// on, and without the fault the command works. After a restart nothing is left.
func TestFaults(t *testing.T) {
	t.Parallel()
	every := *faultEvery
	switch {
	case every > 0:
	case *long:
		every = 1
	default:
		every = 12
	}
	r := random(t)
	errnos := []syscall.Errno{syscall.ENOSPC, syscall.EIO, syscall.EROFS}
	first := r.IntN(len(errnos))
	for i, errno := range errnos {
		skip := r.IntN(every)
		t.Run(unix.ErrnoName(errno), func(t *testing.T) {
			t.Parallel()
			f := newFaults(t)
			for j, c := range faultCommands {
				if every > 1 && (first+i+j)%len(errnos) != 0 {
					continue // another error's in the sample
				}
				ok := t.Run(c.name, func(t *testing.T) {
					skip = f.all(t, c, errno, skip, every)
					if every == 1 {
						f.restart(t)
					}
				})
				if !ok {
					f = newFaults(t)
				}
			}
			f.restart(t)
		})
	}
}

// mostAlike is how many changes of a command are tried that are alike.
const mostAlike = 12

// all tries the points of a command, but only one of so many. It returns how many to skip next.
func (f *faults) all(t *testing.T, c faultCommand, errno syscall.Errno, skip, every int) int {
	points := f.count(t, c)
	tried := make(map[string]int)
	for at, what := range points {
		// Of the many writes of a file one after the other, the first and the last ones do. A
		// build writes its image in hundreds of pieces.
		same := at > 0 && at+1 < len(points) && points[at-1] == what && points[at+1] == what
		if same || tried[what] >= mostAlike {
			continue
		}
		tried[what]++
		if skip--; skip >= 0 {
			continue
		}
		skip = every - 1
		f.try(t, c, faultfs.Fault{At: at, Errno: errno}, what)
		if errno == syscall.EIO && strings.HasPrefix(what, "sync ") {
			f.try(t, c, faultfs.Fault{At: at, Errno: errno, Once: true}, what)
		}
	}
	return skip
}

// firstBuild leaves the directories that images share.
const firstBuild = "mkdir images/xapp; echo rootfs:$WORK/root.tar >images/xapp/source; " +
	"cat images/xapp/wait/ready && rmdir images/xapp && echo gc >blobs"

// faults is a daemon whose state directory fails.
type faults struct {
	*daemon
	layer *faultfs.Layer
	below string
	work  string
	empty []string // files of the state directory without a VM or a built image
}

func newFaults(t *testing.T) *faults {
	t.Helper()
	f := &faults{work: t.TempDir()}
	f.daemon, f.layer, f.below = layeredDaemon(t)
	must(t, f.start())
	faultWork(t, f.daemon, f.work)
	f.do(t, "first build", firstBuild)
	must(t, f.signal(syscall.SIGTERM))
	must(t, f.start())
	f.empty = f.files(t)
	return f
}

// do runs a part of a command that must succeed.
func (f *faults) do(t *testing.T, what, script string) {
	t.Helper()
	if out, err := f.shell(f.work, "p=x\n"+script); err != nil {
		t.Fatalf("%s: %v: %s\n%s", what, err, out, f.logEnd())
	}
}

// logEnd returns the end of the daemon's log.
func (f *faults) logEnd() string {
	text := readFile(f.daemon.log)
	return text[max(0, len(text)-3000):]
}

// count returns the changes that a command makes.
func (f *faults) count(t *testing.T, c faultCommand) []string {
	t.Helper()
	f.do(t, c.name+": before", c.setup)
	f.quiet(t)
	f.layer.Arm(faultfs.Fault{At: -1})
	f.do(t, c.name, c.run)
	points := f.layer.Lift()
	f.do(t, c.name+": its effect", c.done)
	f.do(t, c.name+": undo", c.undo)
	return points
}

// quiet waits until nothing changes in the state directory: deletions and an agent's answers go on
// after a command.
func (f *faults) quiet(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		f.layer.Arm(faultfs.Fault{At: -1})
		time.Sleep(30 * time.Millisecond) // what happens meanwhile is counted
		if len(f.layer.Lift()) == 0 {
			return
		}
	}
	t.Error("the state directory does not come to rest")
}

// try runs a command with a fault, and again without it.
func (f *faults) try(t *testing.T, c faultCommand, fault faultfs.Fault, point string) {
	t.Helper()
	at := fmt.Sprintf("%s, %v from its change %d on (%s)", c.name, fault.Errno, fault.At, point)
	if fault.Once {
		at = fmt.Sprintf("%s, %v once at its change %d (%s)", c.name, fault.Errno, fault.At, point)
	}
	f.do(t, at+": before", c.setup)
	_, _ = f.shell(f.work, "mkdir vms/NO") // the top's error is about that now
	f.quiet(t)
	before := f.picture(t)
	f.layer.Arm(fault)
	said, err := f.shell(f.work, "p=x\n"+c.run)
	reason, _ := f.shell(f.work, "cat error vms/xweb/error images/xapp/error images/xapp/status")
	f.layer.Lift()
	out, undone := f.shell(f.work, "p=x\n"+c.done)
	switch {
	case err == nil && undone == nil:
	case err == nil:
		t.Errorf("%s: it succeeds without its effect: %s", at, out)
	case strings.Contains(err.Error(), "no end"):
		t.Fatalf("%s: %v\n%s", at, err, f.logEnd())
	case !causes[fault.Errno].MatchString(reason):
		t.Errorf("%s: the cause is in no error: %s: %s", at, said, reason)
	}
	// After a failed sync the change may be there: nobody knows what a power cut would leave of it.
	if perhaps := undone == nil && strings.HasPrefix(point, "sync "); err != nil && !perhaps {
		f.quiet(t)
		after := f.picture(t)
		if m := stateLine.FindStringSubmatch(after); m != nil && m[2] == c.ends {
			before = stateLine.ReplaceAllString(before, m[0])
		}
		if after != before {
			t.Errorf("%s: before was\n%s\nand after\n%s", at, before, after)
		}
		f.do(t, at+": again", c.run)
		f.do(t, at+": its effect", c.done)
	}
	f.do(t, at+": undo", c.undo)
}

// picture returns what users see of VMs and images.
func (f *faults) picture(t *testing.T) string {
	t.Helper()
	out, err := f.shell(f.work, `for v in vms/* images/*; do ls -ld --time-style=+ $v; done
for v in vms/*; do grep . $v/config $v/state $v/publish; ls $v/snapshots; done
grep . images/*/status images/*/size`)
	if err != nil && strings.Contains(err.Error(), "no end") {
		t.Fatal(err)
	}
	return out
}

// files returns the names below the state directory.
func (f *faults) files(t *testing.T) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(f.below, func(path string, _ fs.DirEntry, err error) error {
		all = append(all, strings.TrimPrefix(path, f.below))
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	return all
}

// restart restarts the daemon after a command's faults. Nothing is left of them, once the daemon has
// removed the directories of VMs that were never made, in the background.
func (f *faults) restart(t *testing.T) {
	t.Helper()
	must(t, f.signal(syscall.SIGTERM))
	must(t, f.start())
	got := f.files(t)
	for end := time.Now().Add(20 * time.Second); !slices.Equal(got, f.empty) &&
		time.Now().Before(end); got = f.files(t) {
		time.Sleep(50 * time.Millisecond)
	}
	if !slices.Equal(got, f.empty) {
		t.Errorf("files in the state directory are\n%s\nand were\n%s",
			strings.Join(got, "\n"), strings.Join(f.empty, "\n"))
	}
}
