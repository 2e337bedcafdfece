package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/vmm"
	"banger/vmm/store"
)

// readAll opens, reads and closes a file with the system calls of cat(1).
func readAll(t *testing.T, path string, buf []byte) int {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	total := 0
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		must(t, err)
		if n == 0 {
			return total
		}
		total += n
	}
}

// benchReads compares reads of a generated file with reads of a bare FUSE file of the same length.
func benchReads(b *bench) {
	d := testDaemon(b, "fake")
	d.makeVM(b.T, "web", "")
	must(b.T, write(d.path("web", "state"), "start"))
	text, err := read(d.path("web", "stats"))
	must(b.T, err)
	bare := startBare(b.T, bareShape{Dirs: 1, Files: 1, Size: len(text) + 1})
	ours, floor := d.path("web", "stats"), filepath.Join(bare.mount, "vms/v0/f0")
	for _, readers := range []int{1, 8, 64} {
		open := func(path string) func() time.Duration {
			return func() time.Duration {
				return each(readers, 6400, func() { readAll(b.T, path, make([]byte, 4096)) })
			}
		}
		var x, y time.Duration
		d.profiled(b.T, fmt.Sprintf("reads-%d", readers), func() {
			x, y = compare(open(ours), open(floor))
		})
		what := fmt.Sprintf("open+read+close of a cached `stats`, %d readers", readers)
		b.times(what, x, y, "≤ 1.0x")
	}
	kept := func(path string) func() time.Duration {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		must(b.T, err)
		b.Cleanup(func() { unix.Close(fd) })
		buf := make([]byte, 4096)
		return func() time.Duration {
			return each(1, 6400, func() {
				if _, err := unix.Pread(fd, buf, 0); err != nil && err != unix.EINTR {
					b.Error(err)
				}
			})
		}
	}
	x, y := compare(kept(ours), kept(floor))
	b.times("pread at 0 on a kept descriptor", x, y, "≤ 1.0x")
}

// benchOnce counts the collections that 64 simultaneous readers of stale ports cause.
func benchOnce(b *bench) {
	d := testDaemon(b, "fake")
	d.makeVM(b.T, "web", "fake.agent=slow:500ms fake.listen=80/tcp/httpd")
	must(b.T, write(d.path("web", "state"), "start"))
	must(b.T, healthy(d, "web"))
	each(64, 64, func() { readAll(b.T, d.path("web", "ports"), make([]byte, 4096)) })
	metrics, err := read(filepath.Join(d.mount, "metrics"))
	must(b.T, err)
	collections := regexp.MustCompile(`banger_collections_total\{kind="ports"\} (\d+)`)
	n := collections.FindStringSubmatch(metrics)
	if n == nil {
		b.Fatal("metrics count no collections of ports")
	}
	count, err := strconv.ParseFloat(n[1], 64)
	must(b.T, err)
	b.row("64 readers of stale `ports`",
		figure{count, "collections"}, figure{1, "collections"}, "1.00x")
}

// benchCommits compares mkdir and rmdir with their two commits by the store alone.
func benchCommits(b *bench) {
	d := testDaemon(b, "fake")
	s, err := store.Open(context.Background(), filepath.Join(b.TempDir(), "db"))
	must(b.T, err)
	defer s.Close()
	var serial atomic.Int64
	const pairs = 320
	made := func(workers int) func() time.Duration {
		return func() time.Duration {
			return each(workers, pairs, func() {
				dir := d.path(vmName(int(serial.Add(1))))
				if err := os.Mkdir(dir, 0o755); err != nil {
					b.Error(err)
				}
				if err := os.Remove(dir); err != nil {
					b.Error(err)
				}
			})
		}
	}
	committed := func(workers int) func() time.Duration {
		return func() time.Duration {
			return each(workers, pairs, func() {
				name := vmName(int(serial.Add(1)))
				r := vmm.Record{ID: name, Name: name, Created: time.Now(), State: vmm.Stopped}
				if err := s.Insert(context.Background(), &r); err != nil {
					b.Error(err)
				}
				if err := s.Delete(context.Background(), r.Serial); err != nil {
					b.Error(err)
				}
			})
		}
	}
	var one, oneBare, many, manyBare time.Duration
	d.profiled(b.T, "commits-1", func() { one, oneBare = compare(made(1), committed(1)) })
	b.times("mkdir + rmdir, against the commits", one, oneBare, "≤ 1.3x")
	d.profiled(b.T, "commits-16", func() { many, manyBare = compare(made(16), committed(16)) })
	b.times("the same, 16 at once", many, manyBare, "≤ 1.3x")
	b.row("16 at once against in a row",
		rate(1, "pairs/s", many), rate(1, "pairs/s", one), "≥ 3x")
}
