package host

import (
	"bytes"
	"strings"
	"testing"
)

func TestMounts(t *testing.T) {
	long := strings.Repeat("x", 1<<17)
	for _, c := range []struct{ name, line, point, kind, source, options string }{
		{"plain", `36 35 98:0 / /a rw shared:1 master:2 - ext4 /dev/vda rw,x=1`, "/a", "ext4", "/dev/vda", "rw,x=1"},
		{"escapes", `36 35 98:0 / /a\040b\011c\012d\134e rw - ext4 /dev/a\043b rw`, "/a b\tc\nd\\e", "ext4", "/dev/a#b", "rw"},
		{"white space that the kernel does not escape", "36 35 98:0 / /a\u00a0b\vc\u2003d rw - fuse x\u00a0user_id=0 rw,user_id=7",
			"/a\u00a0b\vc\u2003d", "fuse", "x\u00a0user_id=0", "rw,user_id=7"},
		{"no source", `36 35 0:9 / /a rw - tmpfs  rw,size=4k`, "/a", "tmpfs", "", "rw,size=4k"},
		{"a source that is a dash", `36 35 0:9 / /- rw - tmpfs - rw`, "/-", "tmpfs", "-", "rw"},
	} {
		got := Mounts([]byte("junk\n36 35 0:9 / /" + long + " rw - tmpfs x rw\n" + c.line + "\n36 35 0:9 / /cut rw - tm"))
		if len(got) != 1 {
			t.Errorf("%s: %d mounts", c.name, len(got))
			continue
		}
		m := got[0]
		if m.Mountpoint != c.point || m.FSType != c.kind || m.Source != c.source || m.VFSOptions != c.options {
			t.Errorf("%s: got %+v", c.name, m)
		}
	}
}

func FuzzMounts(f *testing.F) {
	f.Add([]byte(`36 35 98:0 / /a\040b rw,noatime shared:1 - fuse.banger banger rw`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if n, most := len(Mounts(text)), bytes.Count(text, []byte("\n"))+1; n > most {
			t.Errorf("%d mounts in %d lines", n, most)
		}
	})
}
