package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// captures is how often TestCaptures opens, reads and closes a file.
const captures = 100_000

// written is a number that a writer counts up: the one that it began to write last, and the one that was acknowledged last.
type written struct{ begun, acked atomic.Int64 }

// changing is a file whose content is known from a number that only grows. A capture must be of one number, all of it.
type changing struct {
	path     string
	parse    func(text []byte, low, high int64) (int64, error) // the number of a whole text, an error for any other
	*written                                                   // twins have it in common

	floor func() int64 // where it is not written: what an open from now on must give at least
	now   func() int64 // instead of begun: the greatest that there can be by now

	seen   atomic.Int64 // the greatest that any reader has seen
	values atomic.Int64 // how often that changed
	opens  atomic.Int64
}

// write has a number written every 20 ms until stop is closed.
func (c *written) write(t *testing.T, stop <-chan struct{}, do func(n int64) error) {
	every := time.NewTicker(20 * time.Millisecond)
	defer every.Stop()
	for n := c.acked.Load() + 1; ; n++ {
		select {
		case <-stop:
			return
		case <-every.C:
		}
		c.begun.Store(n)
		if err := do(n); err != nil {
			t.Errorf("writing number %d: %v", n, err)
			return
		}
		c.acked.Store(n)
	}
}

// low is what an open from now on must give at least.
func (c *changing) low() int64 {
	if c.floor != nil {
		return max(c.seen.Load(), c.floor())
	}
	return max(c.seen.Load(), c.acked.Load())
}

// high is the most that what was read until now may be.
func (c *changing) high() int64 {
	if c.now != nil {
		return c.now()
	}
	return c.begun.Load()
}

// once opens, reads in one way and closes, and looks at all that was read.
func (c *changing) once(read way) error {
	low := c.low()
	texts, err := read(c.path)
	if err != nil {
		return err
	}
	for i, text := range texts {
		high := c.high()
		n, err := c.parse(text, low, high)
		if err == nil && n < low {
			err = fmt.Errorf("stale: of %d, %d was to be seen before the open or before the seek", n, low)
		}
		if err == nil && n > high {
			err = fmt.Errorf("of %d, which is later than %d", n, high)
		}
		if err != nil {
			return fmt.Errorf("text %d of the open: %w:\n%s", i, err, text)
		}
		low = n
		for old := c.seen.Load(); n > old; old = c.seen.Load() {
			if c.seen.CompareAndSwap(old, n) {
				c.values.Add(1)
			}
		}
	}
	c.opens.Add(1)
	return nil
}

// way opens a file, reads it to its end, once or more, and closes it.
type way func(path string) ([][]byte, error)

// opening makes a way of what is done with the descriptor.
func opening(do func(fd int) ([][]byte, error)) way {
	return func(path string) ([][]byte, error) {
		fd, err := ignoringEINTR(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
		if err != nil {
			return nil, err
		}
		defer unix.Close(fd)
		return do(fd)
	}
}

// ignoringEINTR repeats what Go's own signals end.
func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); err != unix.EINTR {
			return n, err
		}
	}
}

// blocks reads on to the end, so many bytes at a time.
func blocks(fd, size int) ([]byte, error) {
	var text []byte
	buf := make([]byte, size)
	for {
		n, err := ignoringEINTR(func() (int, error) { return unix.Read(fd, buf) })
		if err != nil || n == 0 {
			return text, err
		}
		text = append(text, buf[:n]...)
	}
}

func inBlocks(size int) way {
	return opening(func(fd int) ([][]byte, error) {
		text, err := blocks(fd, size)
		return [][]byte{text}, err
	})
}

// again reads all, and from the beginning once more.
var again = opening(func(fd int) ([][]byte, error) {
	first, err := blocks(fd, 8192)
	if err != nil {
		return nil, err
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		return nil, err
	}
	second, err := blocks(fd, 8192)
	return [][]byte{first, second}, err
})

// lines does what a shell's `while read line` does, and takes its time for each: reads a block and seeks back to the end of the line.
var lines = opening(func(fd int) ([][]byte, error) {
	var text []byte
	buf := make([]byte, 128)
	for line := []byte(nil); ; line = line[:0] {
		for {
			n, err := ignoringEINTR(func() (int, error) { return unix.Read(fd, buf) })
			if err != nil || n == 0 {
				return [][]byte{append(text, line...)}, err
			}
			if end := bytes.IndexByte(buf[:n], '\n'); end >= 0 {
				if _, err := unix.Seek(fd, int64(end+1-n), unix.SEEK_CUR); err != nil {
					return nil, err
				}
				text = append(append(text, line...), buf[:end+1]...)
				break
			}
			line = append(line, buf[:n]...)
		}
		time.Sleep(2 * time.Millisecond) // what the shell does with it
	}
})

// sendfile has the kernel copy it, as cp of busybox and Python's shutil.copyfile do.
var sendfile = opening(func(fd int) ([][]byte, error) {
	to, err := unix.MemfdCreate("copy", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(to)
	for {
		n, err := ignoringEINTR(func() (int, error) { return unix.Sendfile(to, fd, nil, 8<<20) })
		if err != nil {
			return nil, err
		}
		if n == 0 {
			break
		}
	}
	if _, err := unix.Seek(to, 0, unix.SEEK_SET); err != nil {
		return nil, err
	}
	text, err := blocks(to, 64<<10)
	return [][]byte{text}, err
})

// configOf is the `config` of number n, as it is written and read: every setting follows from n, and the length is now short, now long.
func configOf(n int64) string {
	words := strings.TrimSpace(strings.Repeat(fmt.Sprintf("n=%d ", n), 1+int(n%2)*150))
	net := []string{"bridge", "user", "none"}[n%3]
	return fmt.Sprintf("image builtin\ncpus %d\nmemory %d\ndisk %d\ncmdline %s\nvmm fake\nnet %s\nautostart %d\nidle_timeout %d\nstop_timeout %d\nprotected %d\nisolate 1\nexpose_fs 0\n",
		1+n%256, 128<<20+n*4096, n*4096, words, net, n%2, n+1, n, n/2%2)
}

func parseConfig(text []byte, _, _ int64) (int64, error) {
	_, after, _ := strings.Cut(string(text), "\nstop_timeout ")
	digits, _, _ := strings.Cut(after, "\n")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err == nil && string(text) != configOf(n) {
		err = fmt.Errorf("mixed or cut: not the config of %d", n)
	}
	return n, err
}

// configJSONOf is its twin.
func configJSONOf(n int64) string {
	var b strings.Builder
	separator := "{"
	for _, line := range strings.Split(strings.TrimSuffix(configOf(n), "\n"), "\n") {
		key, value, _ := strings.Cut(line, " ")
		if _, err := strconv.ParseInt(value, 10, 64); err != nil {
			value = strconv.Quote(value)
		}
		fmt.Fprintf(&b, "%s%q:%s", separator, key, value)
		separator = ","
	}
	return b.String() + "}\n"
}

func parseConfigJSON(text []byte, _, _ int64) (int64, error) {
	_, after, _ := strings.Cut(string(text), `"stop_timeout":`)
	digits, _, _ := strings.Cut(after, ",")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err == nil && string(text) != configJSONOf(n) {
		err = fmt.Errorf("mixed or cut: not the config.json of %d", n)
	}
	return n, err
}

// listName is the name of number n of the VM that is renamed: now short, now so long that it widens the column of `list`.
func listName(n int64) string {
	name := fmt.Sprintf("n-%d", n)
	if n%2 == 1 {
		name += "-" + strings.Repeat("x", 62-len(name))
	}
	return name
}

// numbered finds the one VM of listName's among names.
func numbered(names []string) (int64, error) {
	n := int64(-1)
	for _, name := range names {
		digits, _, _ := strings.Cut(strings.TrimPrefix(name, "n-"), "-")
		if !strings.HasPrefix(name, "n-") {
			continue
		}
		got, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || listName(got) != name || n >= 0 {
			return 0, fmt.Errorf("mixed: %s is there", name)
		}
		n = got
	}
	if n < 0 {
		return 0, errors.New("cut: the VM that is renamed is missing")
	}
	return n, nil
}

func parseList(vms int) func([]byte, int64, int64) (int64, error) {
	return func(text []byte, _, _ int64) (int64, error) {
		rows := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
		if len(rows) != vms || !bytes.HasSuffix(text, []byte("\n")) {
			return 0, fmt.Errorf("mixed or cut: %d rows for %d VMs", len(rows), vms)
		}
		var names []string
		widest, begins := 0, map[int]bool{}
		for _, row := range rows {
			name, rest, _ := strings.Cut(row, " ")
			names, widest = append(names, name), max(widest, len(name))
			begins[len(row)-len(strings.TrimLeft(rest, " "))] = true
			if f := strings.Fields(row); len(f) != 8 || f[7] != "builtin" {
				return 0, fmt.Errorf("mixed or cut: %q", row)
			}
		}
		if len(begins) != 1 || !begins[widest+2] {
			return 0, fmt.Errorf("mixed: the second column begins at %v", begins)
		}
		return numbered(names)
	}
}

func parseListJSON(vms int) func([]byte, int64, int64) (int64, error) {
	return func(text []byte, _, _ int64) (int64, error) {
		var rows []struct{ Name string }
		if err := json.Unmarshal(text, &rows); err != nil || len(rows) != vms || !bytes.HasSuffix(text, []byte("\n")) {
			return 0, fmt.Errorf("mixed or cut: %d rows for %d VMs, %v", len(rows), vms, err)
		}
		var names []string
		for _, row := range rows {
			names = append(names, row.Name)
		}
		return numbered(names)
	}
}

var oneTime = regexp.MustCompile(`^(\d+)\.(\d{3})\n$`)

// parseTime gives the milliseconds of a file of one time.
func parseTime(text []byte, _, _ int64) (int64, error) {
	m := oneTime.FindSubmatch(text)
	if m == nil {
		return 0, errors.New("cut")
	}
	return strconv.ParseInt(string(m[1])+string(m[2]), 10, 64)
}

// statsKeys are the keys of a fake VM's stats: cpu_percent and its interval are not among the first's, the guest's are only while it runs.
var statsKeys = strings.Fields(`collected state uptime cpu_percent cpu_interval cpu_usec rss_bytes vsz_bytes system_overlay_bytes
	disk_read_bytes disk_write_bytes disk_read_ops disk_write_ops
	guest_mem_total_bytes guest_mem_available_bytes guest_load1 guest_procs guest_uptime`)

// stats takes the text of a fake VM's `stats` apart; an error unless all keys are there in their order.
func stats(text []byte) (map[string]string, error) {
	values := map[string]string{}
	var keys []string
	for _, line := range strings.SplitAfter(string(text), "\n") {
		if key, value, _ := strings.Cut(line, " "); strings.HasSuffix(value, "\n") {
			keys = append(keys, key)
			values[key] = strings.TrimSuffix(value, "\n")
		} else if line != "" {
			return nil, fmt.Errorf("cut at %q", line)
		}
	}
	var want []string
	for _, key := range statsKeys {
		if _, ok := values[key]; !ok && (key == "cpu_percent" || key == "cpu_interval" || values["state"] == "paused" && strings.HasPrefix(key, "guest_")) {
			continue
		}
		want = append(want, key)
	}
	if strings.Join(keys, " ") != strings.Join(want, " ") {
		return nil, fmt.Errorf("mixed or cut: it has %v, not %v", keys, want)
	}
	return values, nil
}

// parseStats gives the milliseconds at which stats of a VM that goes on running were collected; started is when it began to run.
// All times of one capture were taken within one collection.
func parseStats(started time.Time) func([]byte, int64, int64) (int64, error) {
	return func(text []byte, _, _ int64) (int64, error) {
		v, err := stats(text)
		if err != nil {
			return 0, err
		}
		if v["state"] != "running" {
			return 0, errors.New("not of a running VM")
		}
		collected, err1 := strconv.ParseFloat(v["collected"], 64)
		uptime, err2 := strconv.ParseFloat(v["uptime"], 64)
		guest, err3 := strconv.ParseFloat(v["guest_uptime"], 64)
		pages, err4 := strconv.ParseInt(v["disk_read_ops"], 10, 64)
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			return 0, err
		}
		age := collected - float64(started.UnixMilli())/1000
		const rounding, longest = 0.02, 1.0
		if uptime > age+rounding || uptime < age-longest || guest > uptime+rounding || guest < age-longest {
			return 0, fmt.Errorf("mixed: collected at an age of %.3f", age)
		}
		kB := strconv.FormatInt(pages*4096, 10)
		if v["disk_write_ops"] != v["disk_read_ops"] || v["disk_read_bytes"] != kB || v["disk_write_bytes"] != kB {
			return 0, errors.New("mixed: the figures of the disk do not fit each other")
		}
		return int64(collected*1000 + 0.5), nil
	}
}

// parsePaused is for a VM that is paused with the odd numbers and runs with the even ones: a capture may be of any of its numbers since
// low, so that the least one counts.
func parsePaused(text []byte, low, high int64) (int64, error) {
	v, err := stats(text)
	if err != nil {
		return 0, err
	}
	n := low
	if paused := v["state"] == "paused"; paused != (n%2 == 1) {
		n++
	}
	if n > high {
		return 0, fmt.Errorf("stale: of the state before %d", low)
	}
	return n, nil
}

// parseEvents gives the number of the last of the events, which come in their order.
func parseEvents(text []byte, _, _ int64) (int64, error) {
	last := int64(0)
	if !bytes.HasSuffix(text, []byte("\n")) {
		return 0, errors.New("cut at its end")
	}
	for _, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		f := strings.Fields(line)
		if len(f) < 4 || f[2] != "conf" {
			return 0, fmt.Errorf("mixed or cut: %q", line)
		}
		n, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil || n <= last {
			return 0, fmt.Errorf("mixed: %q after event %d", line, last)
		}
		last = n
	}
	return last, nil
}

// TestCaptures reads files 100,000 times in all the ways that programs have, all at once and while the files change every 20 ms,
// short and long in turns. Each capture must be whole, of one moment, and not older than what was known before its open.
func TestCaptures(t *testing.T) {
	t.Parallel()
	const maxAge = 10 * time.Millisecond
	d := testDaemon(t, "fake", fmt.Sprintf("stats_max_age = %q", maxAge))
	for _, name := range []string{"conf", "sent", "tick", listName(0)} {
		d.makeVM(t, name, "")
	}
	const others = 100 // so that `list` has more than 4,096 bytes
	for n := range others {
		d.makeVM(t, fmt.Sprintf("v%d", n), "")
	}
	vms := others + 6
	for _, name := range []string{"calm", "swing"} {
		d.makeVM(t, name, "fake.disk=65536")
		if err := write(d.path(name, "state"), "start"); err != nil {
			t.Fatal(err)
		}
		if _, err := read(d.path(name, "wait", "healthy")); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(d.path("calm", "started"))
	if err != nil {
		t.Fatal(err)
	}
	began, err := parseTime(text, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	now := func() int64 { return time.Now().UnixMilli() }
	// What was collected just before it was too old may have waited for a CPU since.
	const waited = 500 * time.Millisecond
	conf := &changing{path: d.path("conf", "config"), parse: parseConfig, written: new(written)}
	confJSON := &changing{path: d.path("conf", "config.json"), parse: parseConfigJSON, written: conf.written}
	sent := &changing{path: d.path("sent", "config"), parse: parseConfig, written: new(written)}
	touched := &changing{path: d.path("tick", "touched"), parse: parseTime, written: new(written), now: now}
	calm := &changing{path: d.path("calm", "stats"), parse: parseStats(time.UnixMilli(began)), now: now,
		floor: func() int64 { return time.Now().Add(-maxAge - waited).UnixMilli() }}
	swing := &changing{path: d.path("swing", "stats"), parse: parsePaused, written: new(written)}
	list := &changing{path: filepath.Join(d.mount, "list"), parse: parseList(vms), written: new(written)}
	listJSON := &changing{path: filepath.Join(d.mount, "list.json"), parse: parseListJSON(vms), written: list.written}
	events := &changing{path: d.path("conf", "events"), parse: parseEvents, floor: func() int64 { return 0 }, now: func() int64 { return 1 << 62 }}
	for _, c := range []*changing{conf, sent} {
		if err := write(c.path, configOf(0)); err != nil {
			t.Fatal(err)
		}
	}

	stop := make(chan struct{})
	var writers sync.WaitGroup
	for _, w := range []struct {
		*written
		do func(n int64) error
	}{
		{conf.written, func(n int64) error { return write(conf.path, configOf(n)) }},
		{sent.written, func(n int64) error { return write(sent.path, configOf(n)) }},
		{swing.written, func(n int64) error { return write(d.path("swing", "state"), []string{"resume", "pause"}[n%2]) }},
		{list.written, func(n int64) error { return os.Rename(d.path(listName(n-1)), d.path(listName(n))) }},
	} {
		writers.Add(1)
		go func() {
			defer writers.Done()
			w.write(t, stop, w.do)
		}()
	}
	writers.Add(1)
	go func() {
		defer writers.Done()
		for {
			began := now()
			if err := write(touched.path, ""); err != nil {
				t.Errorf("the writer of touched: %v", err)
				return
			}
			touched.acked.Store(began)
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()

	var readers sync.WaitGroup
	all := 0
	for _, r := range []struct {
		of             *changing
		way            string
		read           way
		readers, opens int
	}{
		{confJSON, "whole", inBlocks(4096), 4, 46_640},
		{confJSON, "in small blocks", inBlocks(100), 2, 2_000},
		{confJSON, "twice", again, 2, 3_000},
		{conf, "whole", inBlocks(4096), 2, 4_000},
		{conf, "in small blocks", inBlocks(100), 1, 300},
		{conf, "twice", again, 1, 1_000},
		{conf, "line by line", lines, 4, 500},
		{conf, "byte by byte", inBlocks(1), 2, 20},
		{sent, "by sendfile", sendfile, 1, 2_000},
		{touched, "whole", inBlocks(4096), 1, 2_000},
		{calm, "whole", inBlocks(4096), 4, 30_000},
		{calm, "in small blocks", inBlocks(100), 1, 1_500},
		{calm, "twice", again, 1, 2_000},
		{calm, "line by line", lines, 4, 500},
		{calm, "byte by byte", inBlocks(1), 2, 40},
		{swing, "whole", inBlocks(4096), 2, 800},
		{swing, "twice", again, 1, 300},
		{swing, "line by line", lines, 2, 200},
		{list, "whole", inBlocks(64 << 10), 2, 1_000},
		{list, "in small blocks", inBlocks(512), 1, 300},
		{list, "twice", again, 1, 500},
		{list, "line by line", lines, 4, 100},
		// Alone with its file: of two opens at once with texts of different lengths only one can tell the kernel how long it is.
		{listJSON, "by sendfile", sendfile, 1, 1_000},
		{events, "whole", inBlocks(64 << 10), 1, 300},
	} {
		all += r.opens
		left := new(atomic.Int64)
		left.Store(int64(r.opens))
		for range r.readers {
			readers.Add(1)
			go func() {
				defer readers.Done()
				for left.Add(-1) >= 0 && !t.Failed() {
					if err := r.of.once(r.read); err != nil {
						t.Errorf("%s, read %s: %v", r.of.path, r.way, err)
						return
					}
				}
			}()
		}
	}
	if all != captures {
		t.Errorf("%d opens, not %d", all, captures)
	}
	readers.Wait()
	close(stop)
	writers.Wait()
	for _, c := range []*changing{conf, confJSON, sent, touched, calm, swing, list, listJSON, events} {
		t.Logf("%s: %d opens saw %d contents", c.path[len(d.mount):], c.opens.Load(), c.values.Load())
		if c.values.Load() < 50 && !t.Failed() {
			t.Errorf("%s changed %d times only", c.path, c.values.Load())
		}
	}
}
