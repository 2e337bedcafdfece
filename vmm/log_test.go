package vmm

import (
	"os"
	"path/filepath"
	"testing"
)

// A text of a guest stays one line of the log, without control characters.
func TestOwnLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), LogFile)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const forged = "it panicked: \x1b[2Jx\n2026-01-01T00:00:00.000Z banger: running\r\n"
	if n, err := (ownLog{f}).Write([]byte(forged)); n != len(forged) || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	got, err := os.ReadFile(path)
	want := `it panicked: \x1b[2Jx\x0a2026-01-01T00:00:00.000Z banger: running\x0d` + "\n"
	if err != nil || string(got) != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}
