package host

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
)

// Two jobs have two uids, and a uid is used again only when its processes are gone.
func TestJobs(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("run as root")
	}
	jobs := NewJobs(1<<30 + 4096)
	one, err := jobs.Begin()
	if err != nil {
		t.Fatal(err)
	}
	two, err := jobs.Begin()
	if err != nil || one.UID == two.UID || one.UID < 1<<30+4096-JobUIDs || two.UID >= 1<<30+4096 {
		t.Fatalf("uids %+v %+v, error %v", one, two, err)
	}
	// Another daemon of the host, with the same uids, has neither.
	other, err := NewJobs(1<<30 + 4096).Begin()
	if err != nil || other.UID == one.UID || other.UID == two.UID {
		t.Fatalf("uid of another daemon: %+v, error %v", other, err)
	}
	// The processes leave their session and their parent, as a hostile program does.
	const sleeper = "setsid sleep 1000 >/dev/null 2>&1 &"
	cmd := exec.Command("sh", "-c", sleeper+sleeper)
	user := &syscall.Credential{Uid: uint32(one.UID), Gid: uint32(one.UID)}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user}
	cmd.Dir = "/"
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := one.End(); err != nil {
		t.Fatal(err)
	}
	// pgrep exits with 1 when it finds none.
	find := exec.Command("pgrep", "-r", "RSDT", "-U", strconv.Itoa(one.UID))
	if out, err := find.CombinedOutput(); err == nil {
		t.Errorf("processes of the job go on: %s", out)
	}
	again, err := NewJobs(1<<30 + 4096).Begin()
	if err != nil || again.UID != one.UID {
		t.Errorf("the uid of a job that has ended: %+v, error %v", again, err)
	}
	if err := errors.Join(two.End(), other.End(), again.End()); err != nil {
		t.Fatal(err)
	}
	none, err := NewJobs(0).Begin()
	if err != nil || none.UID != -1 || none.End() != nil {
		t.Errorf("without uids of VMs: %+v, %v", none, err)
	}
}
