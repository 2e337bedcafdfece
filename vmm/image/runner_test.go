package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"banger/internal/host"
	"banger/internal/tartest"
)

// largeTar is a root file system with an init and one file of zeros, a sparse file on the host.
func largeTar(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "large.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	init := tartest.Of(t, file("sbin/init", "#!/bin/sh\n"))
	head := append(init[:len(init)-1024], tarHeader(t, size)...)
	_, err = f.Write(head)
	if err := errors.Join(err, f.Truncate(int64(len(head))+size+1024)); err != nil {
		t.Fatal(err)
	}
	return path
}

// workers are the processes that build for this one.
func workers(t *testing.T) (pids []string) {
	t.Helper()
	out, err := exec.Command("pgrep", "-P", fmt.Sprint(os.Getpid()), "-f", workerName).Output()
	var none *exec.ExitError
	if err != nil && !errors.As(err, &none) {
		t.Fatal(err)
	}
	return strings.Fields(string(out))
}

// The process that builds has nothing of the daemon's and ends with its image, wherever it is.
func TestWorkerEndsWithItsImage(t *testing.T) {
	if _, err := exec.LookPath("mke2fs"); err != nil {
		t.Skip("apt install e2fsprogs")
	}
	ctx := context.Background()
	s, _ := openTest(t, filepath.Join(t.TempDir(), "images"))
	s.o.Jobs = host.NewJobs(1 << 30)
	number := create(t, s, "large")
	if err := s.Build(ctx, number, "rootfs:"+largeTar(t, 1<<30), me(t)); err != nil {
		t.Fatal(err)
	}
	var pids []string
	for end := time.Now().Add(time.Minute); len(pids) == 0; time.Sleep(time.Millisecond) {
		if pids = workers(t); time.Now().After(end) {
			t.Fatal("no worker")
		}
	}
	status, err := os.ReadFile("/proc/" + pids[0] + "/status")
	if err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		for _, want := range []string{"\nUid:\t10737408", "\nGid:\t10737408", "\nGroups:\t \n", "\nNoNewPrivs:\t1\n", "\nCapEff:\t0000000000000000\n"} {
			if !strings.Contains(string(status), want) {
				t.Errorf("%q is not in its status:\n%s", want, status)
			}
		}
	}
	if err := s.Remove(ctx, "large", nil); err != nil {
		t.Fatal(err)
	}
	removed := time.Now()
	s.Close()
	if took := time.Since(removed); took > 2*time.Second {
		t.Errorf("the build went on for %v", took)
	}
	if left := workers(t); len(left) > 0 {
		t.Errorf("workers are left: %q", left)
	}
	if left, _ := filepath.Glob(s.path(blobsName, builtName, ".*")); len(left) > 0 {
		t.Errorf("files are left: %q", left)
	}
}

// Whatever a worker says, nothing of it is believed that could not be.
func TestHostileWorker(t *testing.T) {
	for said, want := range map[string]string{
		"\n":    "cannot be read",
		"[1]\n": "cannot be read",
		strings.Repeat(`{"progress":1}`+"\n", 100_000): "prints too much",
		strings.Repeat("x", 2<<20):                     "prints too much",
	} {
		ended := false
		l := &outcomes{progress: func(float64) {}, end: func() { ended = true }}
		if n, err := io.Copy(l, strings.NewReader(said)); err != nil || n != int64(len(said)) {
			t.Errorf("%.20q: %d bytes, error %v", said, n, err)
		}
		if l.err == nil || !strings.Contains(l.err.Error(), want) || !ended || len(l.line) > workerOutput {
			t.Errorf("%.20q: error %v, ended %v", said, l.err, ended)
		}
	}
	var got []float64
	l := &outcomes{progress: func(f float64) { got = append(got, f) }, end: func() { t.Error("it was ended") }}
	fmt.Fprint(l, `{"progress":0.5}`+"\n"+`{"progress":7}`+"\n"+`{"progress":-1}`+"\n"+`{"do`, `ne":true}`+"\n")
	if l.last == nil || !l.last.Done || len(got) != 1 {
		t.Errorf("%+v, %v", l.last, got)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "root.img")
	for name, do := range map[string]func() error{
		"symbolic link": func() error { return os.Symlink("/etc/shadow", path) },
		"hard link": func() error {
			return errors.Join(os.WriteFile(path, nil, 0o600), os.Link(path, filepath.Join(dir, "other")))
		},
		"directory": func() error { return os.Mkdir(path, 0o755) },
		"FIFO":      func() error { return exec.Command("mkfifo", path).Run() },
		"too long":  func() error { return os.WriteFile(path, make([]byte, 1<<20), 0o600) },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
		if _, err := settle(path, 1<<19); err == nil {
			t.Errorf("a %s was taken for what was built", name)
		}
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
}

// What one user's files were built to is not another's, who could have had something else built by
// it.
func TestKeysOfUsers(t *testing.T) {
	keys := map[string]bool{}
	for _, j := range []*job{{local: &local{}, uid: 1001}, {local: &local{}, uid: 1002}, {uid: 1001}, {uid: 1002}} {
		keys[string(j.owner())] = true
	}
	if len(keys) != 3 {
		t.Errorf("%v", keys)
	}
}

// Builds that need too much memory end with a sentence, and leave the daemon's alone.
func TestWorkerMemory(t *testing.T) {
	if os.Getenv("BANGER_TEST_ALLOCATE") != "" {
		o := order{Limits: Limits{Bytes: 1, Files: 1}}
		if err := o.confine(); err != nil {
			t.Fatal(err)
		}
		var all [][]byte
		for range 4 * workerMemory >> 20 {
			all = append(all, make([]byte, 1<<20))
		}
		t.Fatalf("%d MiB were allocated", len(all))
	}
	cmd := exec.Command("/proc/self/exe", "-test.run", "^TestWorkerMemory$")
	cmd.Env = append(os.Environ(), "BANGER_TEST_ALLOCATE=1", "GOTRACEBACK=none")
	out, err := cmd.CombinedOutput()
	// The race detector has words of its own for it.
	says := regexp.MustCompile("out of memory|cannot allocate memory|ThreadSanitizer failed to allocate")
	if err == nil || !says.Match(out) {
		t.Errorf("error %v: %.500s", err, out)
	}
}
