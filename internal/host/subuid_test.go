package host

import (
	"os"
	"path/filepath"
	"testing"
)

func TestSubuids(t *testing.T) {
	s := Subuids{path: filepath.Join(t.TempDir(), "subuid")}
	if got := s.User(100000); got != 100000 {
		t.Errorf("without a file, 100000 is %d's", got)
	}
	text := "1000:100000:65536\nroot:4294967290:6\nnobody-of-this-name:300000:5\n1001:x:5\n1002:7\n"
	if err := os.WriteFile(s.path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := s.User(100000); got != 100000 {
		t.Errorf("the file was read again at once")
	}
	s.read = s.read.Add(-2 * subuidAge)
	for uid, want := range map[uint32]uint32{
		0: 0, 1000: 1000, 99999: 99999, 100000: 1000, 165535: 1000, 165536: 165536,
		300000: 300000, 4294967289: 4294967289, 4294967295: 0,
	} {
		if got := s.User(uid); got != want {
			t.Errorf("%d is %d's, not %d's", uid, got, want)
		}
	}
}
