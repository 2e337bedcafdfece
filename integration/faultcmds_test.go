package integration

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// faultCommand is a command whose writes to the state directory are to fail. Its fields are scripts
// of bash in the mount. $WORK is a directory of users, $S the state directory, and $p begins names.
type faultCommand struct {
	name  string
	setup string // before it, without a fault
	run   string
	done  string // succeeds if the command's effect is there
	undo  string // after it, without a fault: all is as before setup
	ends  string // the VM's state or image's status after a failure; empty: as before
}

// makeFaulty makes a stopped fake VM with a disk.
const makeFaulty = "mkdir vms/${p}web && cat <<<$'vmm fake\\ndisk 1M' >vms/${p}web/config"

// killFaulty removes it, whatever its state.
const killFaulty = "echo kill >vms/${p}web/state; " +
	"rmdir vms/${p}web/snapshots/* 2>/dev/null; rmdir vms/${p}web"

// faultCommands change the state directory in every way that users have.
var faultCommands = []faultCommand{
	{"mkdir", "", "mkdir vms/${p}web",
		"test -d vms/${p}web", "rmdir vms/${p}web", ""},
	{"rmdir", makeFaulty + "; echo start >vms/${p}web/state; echo kill >vms/${p}web/state",
		"rmdir vms/${p}web", "test ! -e vms/${p}web", "", ""},
	{"setting", makeFaulty, "echo 3 >vms/${p}web/cpus",
		"test $(<vms/${p}web/cpus) = 3", killFaulty, ""},
	{"config", makeFaulty, "cat <<<$'cpus 2\\nmemory 256M' >vms/${p}web/config",
		"test $(<vms/${p}web/cpus) = 2 -a $(<vms/${p}web/memory) = 268435456", killFaulty, ""},
	{"publish", makeFaulty, "echo 127.0.0.1:28750:80/tcp >vms/${p}web/publish",
		"grep -q 28750 vms/${p}web/publish", killFaulty, ""},
	{"limit", makeFaulty + "; echo start >vms/${p}web/state", "echo 20000 >vms/${p}web/limits/cpu.max",
		"grep -q ^20000 vms/${p}web/limits/cpu.max", killFaulty, ""},
	{"quota", "", "echo 7 >quota/4711/vms",
		"test \"$(<quota/4711/vms)\" = '0 7'", "echo default >quota/4711/vms", ""},
	{"rename", makeFaulty, "mv -T vms/${p}web vms/${p}new",
		"test -d vms/${p}new -a ! -e vms/${p}web", "mv -T vms/${p}new vms/${p}web; " + killFaulty, ""},
	{"chown", makeFaulty, "chown bob vms/${p}web",
		"test $(stat -c %U vms/${p}web) = bob", killFaulty, ""},
	{"start", makeFaulty, "echo start >vms/${p}web/state",
		"test $(<vms/${p}web/state) = running", killFaulty, "failed"},
	{"pause", makeFaulty + "; echo start >vms/${p}web/state", "echo pause >vms/${p}web/state",
		"test $(<vms/${p}web/state) = paused", killFaulty, ""},
	{"resume", makeFaulty + "; echo start >vms/${p}web/state; echo pause >vms/${p}web/state",
		"echo resume >vms/${p}web/state", "test $(<vms/${p}web/state) = running", killFaulty, ""},
	{"stop", makeFaulty + "; echo start >vms/${p}web/state", "echo stop >vms/${p}web/state",
		"test $(<vms/${p}web/state) = stopped", killFaulty, "stopped"},
	{"kill", makeFaulty + "; echo start >vms/${p}web/state", "echo kill >vms/${p}web/state",
		"test $(<vms/${p}web/state) = stopped", killFaulty, "stopped"},
	{"grow", makeFaulty + "; echo start >vms/${p}web/state", "echo 2M >vms/${p}web/disk",
		"test $(<vms/${p}web/disk) = 2097152", killFaulty, ""},
	{"snapshot", makeFaulty, "mkdir vms/${p}web/snapshots/s",
		"test -d vms/${p}web/snapshots/s", killFaulty, ""},
	{"live", makeFaulty + "; echo start >vms/${p}web/state", "mkdir vms/${p}web/snapshots/s",
		"test -d vms/${p}web/snapshots/s", killFaulty, ""},
	{"restore", makeFaulty + "; mkdir vms/${p}web/snapshots/s", "echo s >vms/${p}web/restore",
		"true", killFaulty, ""},
	{"drop", makeFaulty + "; mkdir vms/${p}web/snapshots/s", "rmdir vms/${p}web/snapshots/s",
		"test ! -e vms/${p}web/snapshots/s", killFaulty, ""},
	{"export", makeFaulty, "cat vms/${p}web/wait/export >$WORK/${p}out.tar",
		"tar -tf $WORK/${p}out.tar | grep -q work.qcow2", killFaulty, ""},
	{"import", "", "(echo ${p}new; cat $WORK/vm.tar) >wait/import",
		"cmp <(head -c4 $S/vms/$(<vms/${p}new/id)/disks/work.qcow2) <(printf here)",
		"rmdir vms/${p}new", ""},
	{"image", "", "mkdir images/${p}app",
		"test -d images/${p}app", "rmdir images/${p}app", ""},
	{"build", "mkdir images/${p}app", "echo rootfs:$WORK/root.tar >images/${p}app/source && " +
		"cat images/${p}app/wait/ready",
		"grep -q ready images/${p}app/status && test -s $S/images/${p}app/root.img",
		"rmdir images/${p}app; echo gc >blobs", "failed"},
	{"unbuild", "mkdir images/${p}app; echo rootfs:$WORK/root.tar >images/${p}app/source; " +
		"cat images/${p}app/wait/ready",
		"rmdir images/${p}app", "! ls images | grep -q ${p}app", "echo gc >blobs", ""},
	{"gc", "mkdir images/${p}app; echo rootfs:$WORK/root.tar >images/${p}app/source; " +
		"cat images/${p}app/wait/ready; rmdir images/${p}app", "echo gc >blobs",
		"test ! -e $S/images/.blobs/built/*", "", ""},
}

// faultWork makes the files that faultCommands use.
func faultWork(t *testing.T, d *daemon, dir string) {
	t.Helper()
	var root bytes.Buffer
	w := tar.NewWriter(&root)
	for _, name := range []string{"etc/", "etc/hostname", "sbin/", "sbin/init"} {
		h := &tar.Header{Name: name, Mode: 0o755}
		if !strings.HasSuffix(name, "/") {
			h.Typeflag, h.Size = tar.TypeReg, 4
		}
		must(t, w.WriteHeader(h))
		if h.Size > 0 {
			_, err := w.Write([]byte("web\n"))
			must(t, err)
		}
	}
	must(t, w.Close())
	must(t, os.WriteFile(filepath.Join(dir, "root.tar"), root.Bytes(), 0o644))
	must(t, openUp(dir))
	must(t, os.Chmod(dir, 0o777)) // users write their exports there
	out, err := d.shell(dir, "p=x\n"+makeFaulty+"; echo start >vms/xweb/state; "+
		"echo kill >vms/xweb/state; "+
		"printf here | dd of=$S/vms/$(<vms/xweb/id)/disks/work.qcow2 conv=notrunc status=none; "+
		"cat vms/xweb/wait/export >$WORK/vm.tar && rmdir vms/xweb")
	if err != nil {
		t.Fatalf("cannot make an archive: %v: %s", err, out)
	}
}

// faultTime bounds a command: none hangs.
const faultTime = 20 * time.Second

// shell runs a script in the mount as root and returns what it prints.
func (d *daemon) shell(work, script string) (string, error) {
	return d.shellAs("root", work, script)
}

// shellAs runs a script as one of testUsers, or root. It changes the directory in the script: a
// fork of the process that serves a FUSE file system must not wait for one.
func (d *daemon) shellAs(user, work, script string) (string, error) {
	who, err := credential(user)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), faultTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", "cd $M || exit 99\n"+script)
	if who != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: who}
	}
	cmd.Env = append(os.Environ(), "M="+d.mount, "S="+d.state, "WORK="+work, "LC_ALL=C")
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		err = fmt.Errorf("no end after %v", faultTime)
	}
	return strings.TrimSpace(string(out)), err
}
