package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// manyReaders wait at once, ownReaders of them as the test's own user.
const manyReaders, ownReaders = 4000, 1000

// TestBlockedReaders has 4,000 blocked readers, 3,000 of them of a user without a VM. Meanwhile the
// daemon answers others, and every signal frees its reader.
func TestBlockedReaders(t *testing.T) {
	d := testDaemon(t, "fake")
	must(t, os.Mkdir(d.path("web"), 0o755))
	must(t, write(d.path("web", "vmm"), "fake"))
	var eve *syscall.Credential // only root's daemon lets others in
	if os.Geteuid() == 0 {
		var err error
		eve, err = credential("eve")
		must(t, err)
	}
	var readers []*exec.Cmd
	t.Cleanup(func() {
		for _, c := range readers {
			if c.ProcessState == nil {
				_ = c.Process.Kill()
				_ = c.Wait()
			}
		}
	})
	for i := range manyReaders {
		c := exec.Command("cat", d.path("web", "wait", "running"))
		if i >= ownReaders {
			c = exec.Command("cat", filepath.Join(d.mount, "wait", "events"))
			c.SysProcAttr = &syscall.SysProcAttr{Credential: eve}
		}
		must(t, c.Start())
		readers = append(readers, c)
	}
	for _, c := range readers {
		if waitBlocked(c.Process.Pid, 1) == 0 {
			t.Fatalf("%v does not wait", c)
		}
	}
	begin := time.Now()
	for range 100 {
		if _, err := read(d.path("web", "config")); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("100 reads of config took %v beside %d blocked readers", took, manyReaders)
	}
	for i, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		c := readers[i]
		must(t, c.Process.Signal(sig))
		ended := make(chan struct{})
		go func() {
			_ = c.Wait()
			close(ended)
		}()
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			t.Errorf("%v does not free a blocked reader within 5 s", sig)
			_ = c.Process.Kill()
			<-ended
		}
	}
	must(t, write(d.path("web", "state"), "start"))
	for _, c := range readers[3:ownReaders] {
		if err := c.Wait(); err != nil {
			t.Fatalf("a reader of wait/running: %v", err)
		}
	}
}
