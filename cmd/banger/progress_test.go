package main

import (
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestProgress(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := progress{screen: write}
	p.clear()
	p.show("%d%%", 100)
	p.show("%s", "é")
	p.show("%d", 20)
	p.clear()
	p.clear()
	write.Close()
	if b, err := io.ReadAll(read); string(b) != "\r100%\ré   \r20\r  \r" {
		t.Errorf("it printed %q, %v", b, err)
	}
}

// TestBuildProgress waits for a build without a terminal: a line of its bytes, not one each moment.
func TestBuildProgress(t *testing.T) {
	root := web(t)
	dir := filepath.Join(root, "images/x")
	if err := os.MkdirAll(filepath.Join(dir, "wait"), 0o755); err != nil {
		t.Fatal(err)
	}
	ready := filepath.Join(dir, "wait/ready")
	if err := syscall.Mkfifo(ready, 0o644); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "progress"), "percent 1\nbytes 1048576\ntotal_bytes 104857600\n")
	put(t, filepath.Join(dir, "status"), "building 1\n")
	put(t, filepath.Join(dir, "source"), "rootfs:/a.tar\n")
	go func() {
		time.Sleep(4 * progressPace)
		put(t, ready, "1.5\n")
	}()
	code, out, errs := banger(root, "image", "pull", "rootfs:/a.tar", "x")
	if code != exitOK || out != "x\n" || errs != "image x: 1%, 1.0M of 100M\n" {
		t.Errorf("%d %q %q", code, out, errs)
	}
}

// TestTransferRate follows a download that pauses, and the step after it.
func TestTransferRate(t *testing.T) {
	var r transferRate
	begin := time.Unix(1790000000, 0)
	for _, x := range []struct {
		after time.Duration
		text  string
		want  string
	}{
		{0, "percent 0\n", "0%"},
		{0, "percent 1\nbytes 1048576\ntotal_bytes 104857600\n", "1%, 1.0M of 100M"},
		{time.Second, "percent 3\nbytes 5242880\ntotal_bytes 104857600\n",
			"3%, 5.0M of 100M, 4.0M/s, 23s left"},
		{3 * time.Second, "percent 3\nbytes 5242880\ntotal_bytes 104857600\n",
			"3%, 5.0M of 100M, 1.3M/s, 1m11s left"},
		{9 * time.Second, "percent 3\nbytes 5242880\ntotal_bytes 104857600\n", "3%, 5.0M of 100M"},
		{10 * time.Second, "percent 60\nbytes 1024\ntotal_bytes 2048\n", "60%, 1.0K of 2.0K"},
		{11 * time.Second, "percent 70\nbytes 2048\ntotal_bytes 2048\n",
			"70%, 2.0K of 2.0K, 1.0K/s, 0s left"},
		{12 * time.Second, "percent 71\nbytes 9\ntotal_bytes -1\n", "71%"},
		{13 * time.Second, "nonsense\n", "0%"},
	} {
		if got := r.line(x.text, begin.Add(x.after)); got != x.want {
			t.Errorf("after %v %q, not %q", x.after, got, x.want)
		}
	}
}
