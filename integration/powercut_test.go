package integration

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/integration/faultfs"
)

// cutScript is what each user does before the power cut, a command a line. $p begins the names of
// one user, and $n is the user's number.
const cutScript = `mkdir vms/${p}web
cat <<<$'vmm fake\ndisk 256K' >vms/${p}web/config
echo 2 >vms/${p}web/cpus
echo 20000 >vms/${p}web/limits/cpu.max
mkdir vms/${p}web/snapshots/one
echo start >vms/${p}web/state
echo 127.0.0.1:2875$n:80/tcp >vms/${p}web/publish
mkdir vms/${p}web/snapshots/two
rmdir vms/${p}web/snapshots/one
echo 512K >vms/${p}web/disk
echo pause >vms/${p}web/state
echo stop >vms/${p}web/state
echo two >vms/${p}web/restore
mv -T vms/${p}web vms/${p}new
cat vms/${p}new/wait/export >$WORK/${p}out.tar
(echo ${p}copy; cat $WORK/vm.tar) >wait/import
mkdir images/${p}app
echo rootfs:$WORK/root.tar >images/${p}app/source
cat images/${p}app/wait/ready
mkdir vms/${p}app
cat <<<$'vmm fake\nautostart 1\nimage '${p}app >vms/${p}app/config
echo 0 >vms/${p}app/autostart
mkdir vms/${p}app/snapshots/s
rmdir vms/${p}app/snapshots/s
rmdir vms/${p}app
rmdir images/${p}app
rmdir vms/${p}new
chmod 700 vms/${p}copy
`

// toolsScript is for VMs of QEMU that do not run: its tools make and change their disks.
const toolsScript = `mkdir vms/${p}web
echo 2M >vms/${p}web/disk
mkdir vms/${p}web/snapshots/one
mkdir vms/${p}web/snapshots/two
echo one >vms/${p}web/restore
rmdir vms/${p}web/snapshots/one
cat vms/${p}web/wait/export >$WORK/${p}out.tar
(echo ${p}copy; cat $WORK/${p}out.tar) >wait/import
mkdir vms/${p}copy/snapshots/three`

// userView shows what users see of their VMs and images, but for what a power cut changes: states.
// A cut in the middle of a snapshot may cost clusters of a disk, and leave flags of clusters that
// are then copied once more than they need to be. All other errors of a disk are shown.
const userView = `shopt -s nullglob
exec 2>/dev/null
for v in vms/${p}*; do
	echo $v $(stat -c '%U %A' $v)
	cat $v/config $v/publish | grep -v '^autostart'
	for s in $v/snapshots/*; do
		echo $s $(<$s/frozen)
	done
	d=$S/vms/$(<$v/id)/disks
	grep -ao here $d/work.qcow2
	for s in $d/snapshot*; do echo ${s##*/} $(ls $s); done
	if [ "$(head -c3 $d/work.qcow2)" = QFI ]; then
		qemu-img snapshot -l $d/work.qcow2 | awk 'NR > 2 {print $2}'
		qemu-img check $d/work.qcow2 2>&1 | grep ^ERROR | grep -v OFLAG_COPIED
	fi
done
for i in images/${p}*; do
	echo $i $(stat -c '%U %A' $i)
	sed 's/^\(building\|failed the daemon ended\).*/cut/' $i/status
done`

// view returns what a user sees, and the files of the user's images. Files of the state directory
// are read in dir: this process must not read those below its layer.
func (d *daemon) view(t *testing.T, dir, work, prefix, p string) string {
	t.Helper()
	text, _ := d.shell(work, prefix+userView)
	files, err := filepath.Glob(filepath.Join(dir, "images", p+"*", "*"))
	must(t, err)
	for _, path := range files {
		if name := filepath.Base(path); name != "record.json" {
			text += fmt.Sprintf("\n%s %s", name, contentSum(t, path))
		}
	}
	return text
}

// contentSum returns a digest of a file's length and of its pages that are not zeros.
func contentSum(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	info, err := f.Stat()
	must(t, err)
	sum := sha256.New()
	fmt.Fprintln(sum, info.Size())
	var page, zeros [4096]byte
	for off := int64(0); ; {
		if off, err = unix.Seek(int(f.Fd()), off, unix.SEEK_DATA); err != nil {
			break // no data is left
		}
		off -= off % int64(len(page))
		n, err := f.ReadAt(page[:], off)
		if !bytes.Equal(page[:n], zeros[:n]) {
			fmt.Fprintln(sum, off)
			sum.Write(page[:n])
		}
		if err != nil {
			break
		}
		off += int64(len(page))
	}
	return fmt.Sprintf("%d %x", info.Size(), sum.Sum(nil)[:8])
}

// moment is what a user sees once a command has returned.
type moment struct {
	line string
	at   int // the position in the record after the command
	seen string
}

// TestPowerCut records what a daemon writes and syncs while two users work. For each sync it makes
// the state directory that a power cut there would have left: with all changes, with only those
// that were synced, and with some of the others. A daemon on it shows what was acknowledged. What
// was not is whole or not there.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		vmm, script string
		every       int // in the sample
	}{{"fake", cutScript, 24}, {"qemu", toolsScript, 24}} {
		t.Run(c.vmm, func(t *testing.T) {
			t.Parallel()
			if ok, cure := realVMs(); c.vmm == "qemu" && !ok {
				t.Skip(cure)
			}
			every := c.every
			switch {
			case *faultEvery > 0:
				every = *faultEvery
			case *long:
				every = 1
			}
			r := random(t)
			cut := recordUsers(t, c.script)
			if t.Failed() {
				return
			}
			for i, at := range cut.syncs() {
				if i%every != every/2 {
					continue
				}
				cut.at(t, "synced", at, cut.record.Synced(at))
				between := min(at+r.IntN(10), cut.record.Len())
				cut.at(t, "random", between, cut.record.Random(between, r))
				between = max(at-r.IntN(10), 0)
				cut.at(t, "all", between, cut.record.All(between))
				if t.Failed() {
					return
				}
			}
		})
	}
}

// powerCuts are the cuts of one record.
type powerCuts struct {
	record *faultfs.Record
	users  []string
	lives  [][]moment // of each user
	work   string
}

// recordUsers records two users who run a script.
func recordUsers(t *testing.T, script string) *powerCuts {
	d, layer, below := layeredDaemon(t)
	must(t, d.start())
	c := &powerCuts{users: []string{"alice", "bob"}, work: t.TempDir()}
	c.lives = make([][]moment, len(c.users))
	faultWork(t, d, c.work)
	must(t, d.signal(syscall.SIGTERM))
	layer.StartRecord()
	must(t, d.start())
	var wg sync.WaitGroup
	for i, user := range c.users {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c.lives[i] = live(t, d, layer, script, below, c.work, user, i)
		}()
	}
	wg.Wait()
	must(t, d.signal(syscall.SIGKILL))
	c.record = layer.EndRecord()
	return c
}

// syncs returns the positions behind each sync.
func (c *powerCuts) syncs() []int {
	var all []int
	for at := range c.record.Len() {
		if c.record.IsSync(at) {
			all = append(all, at+1)
		}
	}
	return all
}

// live runs the script as a user.
func live(t *testing.T, d *daemon, layer *faultfs.Layer,
	script, below, work, user string, n int) []moment {
	p := user[:1]
	prefix := fmt.Sprintf("p=%s; n=%d\n", p, n)
	moments := []moment{{"", 0, d.view(t, below, work, prefix, p)}}
	for line := range strings.Lines(script) {
		line = strings.TrimSpace(line)
		if out, err := d.shellAs(user, work, prefix+line); err != nil {
			t.Errorf("%s: %v: %s\n%s", line, err, out, readFile(d.log))
			return nil
		}
		at := layer.Position()
		moments = append(moments, moment{line, at, d.view(t, below, work, prefix, p)})
	}
	return moments
}

// at starts a daemon on a tree and compares what it shows with the moments around that position.
func (c *powerCuts) at(t *testing.T, kind string, at int, tree *faultfs.Tree) {
	t.Helper()
	d, err := newDaemon(t.TempDir())
	must(t, err)
	must(t, openUp(d.state))
	must(t, tree.WriteTo(d.state))
	defer d.cleanup()
	if err := d.start(); err != nil {
		t.Errorf("power cut at %d, %s: %v", at, kind, err)
		return
	}
	for i, user := range c.users {
		done := 0
		for j, m := range c.lives[i] {
			if m.at <= at {
				done = j
			}
		}
		may := c.lives[i][done:min(done+2, len(c.lives[i]))] // the next one may have been under way
		now := ""
		shown := func(m moment) bool { return m.seen == now }
		prefix := fmt.Sprintf("p=%s; n=%d\n", user[:1], i)
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
			// What is left of a snapshot is removed beside the daemon's start.
			if now = d.view(t, d.state, c.work, prefix, user[:1]); slices.ContainsFunc(may, shown) {
				break
			}
		}
		if !slices.ContainsFunc(may, shown) {
			t.Errorf("power cut at %d, %s: there is\n%s\nand not what was acknowledged:", at, kind, now)
			for _, m := range may {
				t.Errorf("after %s:\n%s", m.line, m.seen)
			}
		}
	}
	noRemains(t, d)
	must(t, d.signal(syscall.SIGTERM))
}

// noRemains reports files that belong to no VM and no image.
func noRemains(t *testing.T, d *daemon) {
	t.Helper()
	d.leftovers(t, 0, 0)
	for _, dir := range []string{"images", "images/.blobs", "images/.blobs/*"} {
		names, err := filepath.Glob(filepath.Join(d.state, dir, ".*"))
		must(t, err)
		for _, name := range names {
			if filepath.Base(name) != ".blobs" {
				t.Errorf("%s is left", name)
			}
		}
	}
}
