package sftp

import (
	"io"
	"reflect"
	"syscall"
	"testing"
	"time"
)

// TestRoundTrip reads what the other side writes.
func TestRoundTrip(t *testing.T) {
	attr := Attr{
		Size: 1 << 40, UID: 7, GID: 8, Mode: syscall.S_IFREG | 0o4711,
		FileStat: FileStat{
			Nlink: 3, Blocks: 5, Rdev: 1 << 33,
			Atime: time.Unix(1, 2), Mtime: time.Unix(-3, 4), Ctime: time.Unix(1<<33, 6),
		},
	}
	d := decoder{b: appendAttr(nil, &attr)}
	if got := d.attr(); d.bad || len(d.b) != 0 || !reflect.DeepEqual(got, attr) {
		t.Errorf("attributes %+v are read as %+v", attr, got)
	}

	size, id, mode, left := uint64(9), uint32(10), uint32(0o600), uint32(nobody)
	several := Change{Size: &size, Mode: &mode, Atime: TimeNow, Mtime: -5}
	for _, x := range []struct{ sent, want Change }{
		{unchanged, unchanged},
		{several, several},
		{
			Change{UID: &id, Atime: TimeOmit, Mtime: 7, Sync: true},
			Change{UID: &id, GID: &left, Atime: TimeOmit, Mtime: 7, Sync: true},
		},
	} {
		for _, words := range [][]string{nil, {extAttrs}} {
			d := decoder{b: appendChange(nil, x.sent, words...)}
			got, wantAttrs := d.change()
			if d.bad || len(d.b) != 0 || !reflect.DeepEqual(got, x.want) {
				t.Errorf("change %+v is read as %+v", x.want, got)
			}
			if wantAttrs != (words != nil) {
				t.Errorf("with %v, attributes are wanted: %v", words, wantAttrs)
			}
		}
	}

	for _, want := range append([]error{nil, io.EOF}, asErrors(errnos)...) {
		d := decoder{b: appendStatus(nil, want)}
		if got := statusError(&d); d.bad || got != want {
			t.Errorf("status %v is read as %v", want, got)
		}
	}
}

func asErrors(all []syscall.Errno) (errs []error) {
	for _, e := range all {
		errs = append(errs, e)
	}
	return errs
}
