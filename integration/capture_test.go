package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// captures is how often TestCaptures opens, reads and closes a file.
const captures = 100_000

// written holds the last number whose write has begun, and the last one whose write has ended.
type written struct{ begun, acked atomic.Int64 }

// changing is a file whose content follows from a number that only grows. A whole capture must be
// of one number.
type changing struct {
	path     string
	parse    parser
	*written // shared by twins

	// Of a file without a writer: the least number that a new open may see, and the greatest that
	// there can be.
	floor, now func() int64

	seen   atomic.Int64 // the greatest that any reader has seen
	values atomic.Int64 // how often that changed
	opens  atomic.Int64
}

// parser returns the number of a whole text, and an error for any other text.
type parser func(text []byte, low, high int64) (int64, error)

// write writes a number every 20 ms until stop is closed.
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

// low returns the least number that a new open may see.
func (c *changing) low() int64 {
	if c.floor != nil {
		return max(c.seen.Load(), c.floor())
	}
	return max(c.seen.Load(), c.acked.Load())
}

// high returns the greatest number that a text may have by now.
func (c *changing) high() int64 {
	if c.now != nil {
		return c.now()
	}
	return c.begun.Load()
}

// once opens, reads in one way, closes, and checks all texts.
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
			err = fmt.Errorf("stale: of %d, while %d was there before the open or seek", n, low)
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

// TestCaptures reads files 100,000 times, in all ways that programs have and all at once. The files
// change every 20 ms and are short and long in turns. Each capture must be whole, of one moment,
// and not older than its open.
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
		must(t, write(d.path(name, "state"), "start"))
		must(t, healthy(d, name))
	}
	text, err := os.ReadFile(d.path("calm", "started"))
	must(t, err)
	began, err := parseTime(text, 0, 0)
	must(t, err)
	now := func() int64 { return time.Now().UnixMilli() }
	// A collection that was just young enough may have waited for a CPU.
	const waited = 500 * time.Millisecond
	file := func(path string, parse parser, w *written) *changing {
		return &changing{path: path, parse: parse, written: w}
	}
	conf := file(d.path("conf", "config"), parseConfig, new(written))
	confJSON := file(d.path("conf", "config.json"), parseConfigJSON, conf.written)
	sent := file(d.path("sent", "config"), parseConfig, new(written))
	touched := file(d.path("tick", "touched"), parseTime, new(written))
	touched.now = now
	calm := file(d.path("calm", "stats"), parseStats(time.UnixMilli(began)), nil)
	calm.floor = func() int64 { return time.Now().Add(-maxAge - waited).UnixMilli() }
	calm.now = now
	swing := file(d.path("swing", "stats"), parsePaused, new(written))
	list := file(filepath.Join(d.mount, "list"), parseList(vms), new(written))
	listJSON := file(filepath.Join(d.mount, "list.json"), parseListJSON(vms), list.written)
	events := file(d.path("conf", "events"), parseEvents, nil)
	events.floor, events.now = func() int64 { return 0 }, func() int64 { return 1 << 62 }
	for _, c := range []*changing{conf, sent} {
		must(t, write(c.path, configOf(0)))
	}

	stop := make(chan struct{})
	var writers sync.WaitGroup
	for _, w := range []struct {
		*written
		do func(n int64) error
	}{
		{conf.written, func(n int64) error { return write(conf.path, configOf(n)) }},
		{sent.written, func(n int64) error { return write(sent.path, configOf(n)) }},
		{swing.written, func(n int64) error {
			return write(d.path("swing", "state"), []string{"resume", "pause"}[n%2])
		}},
		{list.written, func(n int64) error {
			return os.Rename(d.path(listName(n-1)), d.path(listName(n)))
		}},
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
		// One reader: of two opens with texts of different lengths, the kernel knows one length
		// only.
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
	files := []*changing{conf, confJSON, sent, touched, calm, swing, list, listJSON, events}
	for _, c := range files {
		opens, values := c.opens.Load(), c.values.Load()
		t.Logf("%s: %d opens saw %d contents", c.path[len(d.mount):], opens, values)
		if values < 50 && !t.Failed() {
			t.Errorf("%s changed %d times only", c.path, values)
		}
	}
}
