package fs

import (
	"errors"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// TestAllowances has users open as much as they may, each of them and all together.
func TestAllowances(t *testing.T) {
	s := &Server{uid: 0}
	open := func(uid uint32, bytes int64) (*opened, error) {
		h := new(opened)
		var err error
		if h.share, err = s.newShare(uid); err == nil {
			err = h.share.Hold(bytes)
		}
		if err != nil {
			h.share.Release()
			return nil, err
		}
		return h, nil
	}
	refused := func(err error, why string) {
		t.Helper()
		if !errors.Is(err, syscall.EDQUOT) || !strings.Contains(err.Error(), why) {
			t.Errorf("%v, not EDQUOT that says %q", err, why)
		}
	}
	// One more is opened while there is room, however long it is; less is never refused.
	var all []*opened
	for uid := uint32(1); uid <= maxAllBytes/maxBytes; uid++ {
		h, err := open(uid, maxBytes)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, h)
		_, err = open(uid, 1)
		refused(err, "open: close some")
	}
	_, err := open(99, 1)
	refused(err, "all users together")
	if err := all[0].share.Hold(1); err != nil {
		t.Error(err)
	}
	if h, err := open(0, 10*maxAllBytes); err != nil {
		t.Error("root:", err)
	} else {
		h.share.Release()
	}
	for _, h := range all {
		h.share.Release()
	}
	// The number of files, from many threads.
	var work sync.WaitGroup
	count := make([][]*opened, 8)
	for i := range count {
		work.Add(1)
		go func() {
			defer work.Done()
			for range maxFiles / 4 {
				if h, err := open(1, 0); err == nil {
					count[i] = append(count[i], h)
				}
			}
		}()
	}
	work.Wait()
	n := 0
	for _, some := range count {
		n += len(some)
		for _, h := range some {
			h.share.Release()
		}
	}
	if n > maxFiles || n < maxFiles-len(count) {
		t.Errorf("%d files of one uid", n)
	}
	if files, bytes := s.allowances.all.files.Load(), s.allowances.all.bytes.Load(); files != 0 || bytes != 0 {
		t.Errorf("%d files and %d bytes are left", files, bytes)
	}
}
