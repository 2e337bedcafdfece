package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/vmm/guest"
)

// TestEndOf explains programs that cannot begin, and programs that ended.
func TestEndOf(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		what   string
		status unix.WaitStatus
		err    error
		want   guest.ExecStatus
		says   string
	}{
		{"ended", 3 << 8, nil, guest.ExecStatus{Code: 3}, ""},
		{"killed", 9, nil, guest.ExecStatus{Signal: 9}, ""},
		{"user", 0, guest.ErrInvalid, guest.ExecStatus{Code: 125}, "invalid"},
		{"missing", 0, notFound(guest.ErrNotFound), guest.ExecStatus{Code: 127}, "no such thing"},
		{"mode", 0, notFound(fmt.Errorf("x: %w", guest.ErrAccess)), guest.ExecStatus{Code: 126}, "not yours"},
		{"script", 0, notBegun(write("script", "#! /no/such -x\n"), unix.ENOENT),
			guest.ExecStatus{Code: 127}, `its interpreter "/no/such" is not in the guest`},
		{"bare", 0, notBegun(write("bare", "#!"), unix.ENOENT), guest.ExecStatus{Code: 127},
			"its loader is not"},
		{"empty", 0, notBegun(write("empty", ""), unix.ENOEXEC), guest.ExecStatus{Code: 126},
			"another architecture"},
		{"long", 0, notBegun(write("long", "#!/"+strings.Repeat("x", 1000)), unix.ENOENT),
			guest.ExecStatus{Code: 127}, "xxx"},
		{"denied", 0, notBegun("/x", unix.EACCES), guest.ExecStatus{Code: 126}, "denied"},
	} {
		end := endOf(c.status, c.err)
		if end.Status != c.want || !strings.Contains(end.Error, c.says) ||
			(c.says == "") != (end.Error == "") {
			t.Errorf("%s: %+v, want %+v and %q", c.what, end, c.want, c.says)
		}
		if len(end.Error) > 512 {
			t.Errorf("%s: the sentence has %d bytes", c.what, len(end.Error))
		}
	}
}
