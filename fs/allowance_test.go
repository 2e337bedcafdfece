package fs

import (
	"errors"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// TestAllowances expects refusals at the bounds of one user and of all users.
func TestAllowances(t *testing.T) {
	s := &Server{uid: 0}
	open := func(uid uint32, bytes int64) (*share, error) {
		h, err := s.newShare(uid)
		if err == nil {
			err = h.Hold(bytes)
		}
		if err != nil {
			h.Release()
			return nil, err
		}
		return h, nil
	}
	refused := func(err error, why string) {
		t.Helper()
		if !errors.Is(err, syscall.EDQUOT) || !strings.Contains(err.Error(), why) {
			t.Errorf("%v, not EDQUOT with %q", err, why)
		}
	}
	// A file of any length is opened below the bound, and fewer bytes are never refused.
	var all []*share
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
	if err := all[0].Hold(1); err != nil {
		t.Error(err)
	}
	if h, err := open(0, 10*maxAllBytes); err != nil {
		t.Error("root:", err)
	} else {
		h.Release()
	}
	for _, h := range all {
		h.Release()
	}
	// Many threads open files.
	var work sync.WaitGroup
	count := make([][]*share, 8)
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
			h.Release()
		}
	}
	if n > maxFiles || n < maxFiles-len(count) {
		t.Errorf("%d files of one uid", n)
	}
	left := &s.allowances.all
	if files, bytes := left.files.Load(), left.bytes.Load(); files != 0 || bytes != 0 {
		t.Errorf("%d files and %d bytes still count", files, bytes)
	}
}
