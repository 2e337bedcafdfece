package rootfs

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/tartest"
)

var file = tartest.File

func gzipped(b []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(b)
	w.Close()
	return buf.Bytes()
}

func layersOf(tars ...[]byte) []*Layer {
	var layers []*Layer
	for _, b := range tars {
		layers = append(layers, &Layer{Size: int64(len(b)), Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }})
	}
	return layers
}

func nothing(float64) {}

var testLimits = Limits{Bytes: 8 << 30, Files: 500_000}

// list shows a tree, one line per name.
func list(t *tree) string {
	var b strings.Builder
	var walk func(n *node, at string)
	walk = func(n *node, at string) {
		for _, name := range sortedNames(n.children) {
			c := n.children[name]
			fmt.Fprintf(&b, "%s %o", at+name, c.mode)
			if c.link != "" {
				b.WriteString(" " + c.link)
			}
			b.WriteString("\n")
			walk(c, at+name+"/")
		}
	}
	walk(t.root, "/")
	return b.String()
}

// Layers are laid over each other by the rules of the image-spec.
func TestLayers(t *testing.T) {
	dir := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755} }
	low := tartest.Of(t, dir("etc/"), file("etc/keep", "a"), file("etc/gone", "a"), dir("data"), file("data/old", "a"), file("data/sub/old", "a"),
		tar.Header{Name: "lib", Typeflag: tar.TypeSymlink, Linkname: "usr/lib"}, file("usr/lib/a", "a"), file("was-file", "a"), dir("was-dir"), file("was-dir/x", "x"))
	high := tartest.Of(t, file("etc/.wh.gone", ""), file("data/new", "b"), file("data/.wh..wh..opq", ""), file("lib/b", "b"),
		dir("was-file"), file("was-dir", "b"), file("/abs", "b"), file("./new", "c"), tar.Header{Name: "dev/sda", Typeflag: tar.TypeBlock, Devmajor: 8},
		tar.Header{Name: "dev/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, tar.Header{Name: "again", Typeflag: tar.TypeLink, Linkname: "lib/b"},
		// Links and whiteouts that would lead out of the root end at it.
		tar.Header{Name: "out", Typeflag: tar.TypeSymlink, Linkname: "../../.."}, file("out/out/inside", "d"),
		file(".wh...", ""), file("data/.wh...", ""), file("data/.wh..", ""))
	r, err := Read(context.Background(), layersOf(low, high), testLimits, nothing)
	if err != nil {
		t.Fatal(err)
	}
	want := `/abs 100644
/again 100644
/data 40755
/data/new 100644
/etc 40755
/etc/keep 100644
/inside 100644
/lib 120777 usr/lib
/new 100644
/out 120777 ../../..
/usr 40755
/usr/lib 40755
/usr/lib/a 100644
/usr/lib/b 100644
/was-dir 100644
/was-file 40755
`
	if got := list(r.tree); got != want {
		t.Errorf("got\n%s", got)
	}
}

// TestAUFSLayers lays layers over each other that have AUFS's own files, at the root and below.
func TestAUFSLayers(t *testing.T) {
	dir := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755} }
	link := func(name, to string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to}
	}
	low := tartest.Of(t, file(".wh..wh.aufs", ""), dir(".wh..wh.orph/"), file(".wh..wh.orph/x", "x"),
		dir(".wh..wh.plnk/"), file("./.wh..wh.plnk/123.4", "two names"), file(".wh..wh.plnk/9.9", "none"),
		link("one", ".wh..wh.plnk/123.4"), link("sub/two", "/.wh..wh.plnk/123.4"),
		dir("data/.wh..wh.orph"), file("data/.wh..wh.orph/deep/x", "x"), file("data/.wh..wh.aufs", ""),
		file("data/.wh..wh.plnk/5.5", "x"), file("data/old", "a"), file("data/sub/old", "a"),
		dir("data/empty"))
	high := tartest.Of(t, dir("data/sub/.wh..wh..opq"), file("data/sub/new", "b"),
		file("data/.wh..wh..opq/x", ""), dir(".wh..wh.plnk"), file(".wh.one", ""))
	r, err := Read(context.Background(), layersOf(low, high), testLimits, nothing)
	if err != nil {
		t.Fatal(err)
	}
	want := `/data 40755
/data/empty 40755
/data/old 100644
/data/sub 40755
/data/sub/new 100644
/sub 40755
/sub/two 100644
`
	if got := list(r.tree); got != want {
		t.Errorf("got\n%s", got)
	}
	if n := r.tree.follow("sub/two"); n.links != 1 || n.size != 9 {
		t.Errorf("the linked file has %d names and %d bytes", n.links, n.size)
	}
	// A link leads into its own layer only, and into no other directory of AUFS's.
	for _, to := range []string{".wh..wh.plnk/123.4", ".wh..wh.plnk/none", ".wh..wh.plnk",
		"data/.wh..wh.plnk/5.5", ".wh..wh.orph/x"} {
		next := tartest.Of(t, link("three", to))
		_, err := Read(context.Background(), layersOf(low, next), testLimits, nothing)
		if err == nil || !strings.Contains(err.Error(), "no file of the root") {
			t.Errorf("a link to %s: %v", to, err)
		}
	}
}

// What leads out of the root, or is too much, is refused with a sentence and before anything is
// written.
func TestHostileLayers(t *testing.T) {
	// One empty file's header, again and again.
	many := func(n int) *Layer {
		return &Layer{Open: func() (io.ReadCloser, error) {
			const chunk = 1000
			heads := bytes.Repeat(tarHeader(t, 0), chunk)
			var all []io.Reader
			for range n / chunk {
				all = append(all, bytes.NewReader(heads))
			}
			return io.NopCloser(io.MultiReader(append(all, bytes.NewReader(make([]byte, 1024)))...)), nil
		}}
	}
	// 10 GB of zeros are 10 MB compressed; the gzip of 4 MiB, again and again, is one of them all.
	zeros := func() *Layer {
		head := tarHeader(t, 10<<30)
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		if _, err := z.Write(make([]byte, 4<<20)); err != nil {
			t.Fatal(err)
		}
		z.Close()
		return &Layer{Open: func() (io.ReadCloser, error) {
			all := []io.Reader{bytes.NewReader(gzipped(head))}
			for range 2560 {
				all = append(all, bytes.NewReader(packed.Bytes()))
			}
			return io.NopCloser(io.MultiReader(all...)), nil
		}}
	}
	// Each entry is one file in 200 directories that nobody has seen before.
	var forest []tar.Header
	for i := range 20_001 {
		forest = append(forest, tar.Header{Name: fmt.Sprintf("%d/%sx", i, strings.Repeat("d/", 198)), Typeflag: tar.TypeReg})
	}
	cycle := []tar.Header{{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "b"}, {Name: "b", Typeflag: tar.TypeSymlink, Linkname: "a"}, file("a/x", "x")}
	// A name with a NUL is written by changing one: no tar.Writer does it.
	nul := func(h tar.Header) []*Layer {
		return layersOf(bytes.ReplaceAll(tartest.Of(t, h), []byte("§"), []byte{'/', 0}))
	}
	for name, c := range map[string]struct {
		layers []*Layer
		want   string
	}{
		"a NUL":             {nul(file("etc/passwd§x", "x")), "invalid tar header"},
		"a NUL in a link":   {nul(tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "etc§x"}), "invalid tar header"},
		"dots":              {layersOf(tartest.Of(t, file("../etc/passwd", "x"))), "leads out of the root"},
		"dots within":       {layersOf(tartest.Of(t, file("a/../../x", "x"))), "leads out of the root"},
		"hard link out":     {layersOf(tartest.Of(t, tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "../../etc/shadow"})), "leads out of the root"},
		"absolute link":     {layersOf(tartest.Of(t, tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "/etc/shadow"})), "no file of the root"},
		"link to directory": {layersOf(tartest.Of(t, tar.Header{Name: "d", Typeflag: tar.TypeDir}, tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "d"})), "no file of the root"},
		"a circle":          {layersOf(tartest.Of(t, cycle...)), "circle"},
		"below a file":      {layersOf(tartest.Of(t, file("a", "x"), file("a/b", "x"))), "in the place of a directory"},
		"deep":              {layersOf(tartest.Of(t, file(strings.Repeat("d/", 300)+"x", "x"))), "directories"},
		"long name":         {layersOf(tartest.Of(t, file(strings.Repeat("n", 256), "x"))), "a name of 256 bytes"},
		"xattrs": {layersOf(tartest.Of(t, tar.Header{Name: "x", Typeflag: tar.TypeReg,
			PAXRecords: map[string]string{"SCHILY.xattr.user.big": strings.Repeat("v", 4000)}})), "extended attributes"},
		"a forest":         {layersOf(gzipped(tartest.Of(t, forest...))), "more than 500000 files"},
		"sparse":           {layersOf(tartest.Sparse(t, "x", 1<<40)), "sparse member"},
		"a million files":  {[]*Layer{many(1_000_000)}, "more than 500000 files"},
		"10 GB of zeros":   {[]*Layer{zeros()}, "more than 8589934592 bytes"},
		"cut":              {layersOf(tartest.Of(t, file("x", "0123456789"))[:514]), "EOF"},
		"damaged":          {[]*Layer{{Digest: Sum(nil), Open: layersOf(tartest.Of(t, file("x", "x")))[0].Open}}, "damaged"},
		"unpacked damaged": {[]*Layer{{DiffID: Sum(nil), Open: layersOf(gzipped(tartest.Of(t, file("x", "x"))))[0].Open}}, "damaged"},
		"xz":               {layersOf([]byte("\xfd7zXZ\x00....")), "compressed with xz"},
	} {
		_, err := Read(context.Background(), c.layers, testLimits, nothing)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, c.want)
		}
	}
}

// Directories that a path only implies are files, and a block each.
func TestMadeDirectoriesCount(t *testing.T) {
	tr := newTree(Limits{Bytes: 1 << 20, Files: 100})
	if err := tr.add(&tar.Header{Name: "a/b/c", Typeflag: tar.TypeReg, Size: 5}); err != nil {
		t.Fatal(err)
	}
	if tr.files != 3 || tr.bytes != 2*blockSize+5 || tr.text != 3 {
		t.Errorf("%d files, %d bytes, %d of text", tr.files, tr.bytes, tr.text)
	}
	if err := tr.add(&tar.Header{Name: "x/" + strings.Repeat("d/", 100) + "y", Typeflag: tar.TypeReg}); err == nil {
		t.Error("101 directories are no 101 files")
	}
	tr = newTree(Limits{Bytes: 1 << 20, Files: 100})
	long := tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("l", 4000)}
	for range 12 {
		if err := tr.add(&long); err != nil {
			t.Fatal(err)
		}
	}
	if err := tr.add(&long); err == nil || !strings.Contains(err.Error(), "names, links and attributes") {
		t.Errorf("13 long links: %v", err)
	}
}

// A layer that empties its directory again and again is looked through once.
func TestRepeatedWhiteouts(t *testing.T) {
	tr := newTree(testLimits)
	add := func(name string) {
		if err := tr.add(&tar.Header{Name: name, Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
	}
	add("low/old")
	tr.layer = 1
	for i := range 20_000 {
		add(fmt.Sprintf("low/new-%d", i))
	}
	begun := time.Now()
	for range 20_000 {
		add("low/.wh..wh..opq")
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	if n := tr.follow("low"); len(n.children) != 20_000 || n.children["old"] != nil {
		t.Errorf("%d names are left", len(n.children))
	}
}

// tarHeader is the header of a file of that size, without it.
func tarHeader(t *testing.T, size int64) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "zeros", Typeflag: tar.TypeReg, Size: size, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// A file that claims little and unpacks to much is bounded, too.
func TestBomb(t *testing.T) {
	l := layersOf(gzipped(append(tartest.Of(t, file("x", "x")), make([]byte, 16<<20)...)))[0]
	_, err := Read(context.Background(), []*Layer{l}, Limits{Bytes: 1 << 20, Files: 10}, nothing)
	if err == nil || !strings.Contains(err.Error(), "more than is allowed") {
		t.Errorf("error %v", err)
	}
}

// The file system that is written has what the layers have, and e2fsck finds nothing wrong with it.
func TestExt4(t *testing.T) {
	if _, err := exec.LookPath("mke2fs"); err != nil {
		t.Skip("apt install e2fsprogs")
	}
	entries := []tar.Header{
		{Name: "bin/su", Typeflag: tar.TypeReg, Linkname: "su", Mode: 0o4755, Uid: 0, Gid: 70000},
		{Name: "home", Typeflag: tar.TypeDir, Mode: 0o700, Uid: 100000, Gid: 100001, ModTime: time.Unix(1e9, 0)},
		{Name: "short", Typeflag: tar.TypeSymlink, Linkname: "bin/su"},
		{Name: "long", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("a/", 100)},
		{Name: "second", Typeflag: tar.TypeLink, Linkname: "bin/su"},
		{Name: "pipe", Typeflag: tar.TypeFifo},
		{Name: "ping", Typeflag: tar.TypeReg, Linkname: "ping", PAXRecords: map[string]string{
			"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00", "SCHILY.xattr.user.a": "b"}},
		file(".wh..wh.plnk/1.2", "linked"), {Name: "aufs", Typeflag: tar.TypeLink, Linkname: ".wh..wh.plnk/1.2"},
		file("empty", ""), file("large", strings.Repeat("0123456789abcdef", 1<<16)), file("zeros", strings.Repeat("\x00", 1<<20)),
	}
	for i := range 3000 {
		entries = append(entries, file(fmt.Sprintf("many/a-name-that-is-not-short-%d", i), fmt.Sprint(i)))
	}
	disk := filepath.Join(t.TempDir(), "root.img")
	r, err := Read(context.Background(), layersOf(tartest.Of(t, entries...)), testLimits, nothing)
	if err == nil {
		err = r.Write(context.Background(), disk, nothing)
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("e2fsck", "-fn", disk).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	debugfs := func(command string) string {
		out, err := exec.Command("debugfs", "-R", command, disk).Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	for command, want := range map[string]string{
		"stat /bin/su": "Mode:  04755", "stat /home": "User: 100000   Group: 100001", "cat /many/a-name-that-is-not-short-2999": "2999",
		"stat /long": strings.Repeat("a/", 10), "stat /second": "Links: 2", "ea_get /ping user.a": "b", "stat /pipe": "Type: FIFO", "cat /aufs": "linked", "cat /second": "su",
	} {
		if got := debugfs(command); command == "stat /long" {
			if !strings.Contains(got, "Size: 200") {
				t.Errorf("%s: %s", command, got)
			}
		} else if !strings.Contains(got, want) {
			t.Errorf("%s: %s", command, got)
		}
	}
	if got := debugfs("cat /large"); got != entries[10].Linkname {
		t.Errorf("large is another after %d bytes", len(got))
	}
	fi, err := os.Stat(disk)
	if err != nil || fi.Size() < leastDisk || fi.Sys().(*syscall.Stat_t).Blocks > 64<<20/512 {
		t.Errorf("size %d, %+v, error %v", fi.Size(), fi.Sys(), err)
	}
	// It can be grown, as the guest's kernel does.
	if err := os.Truncate(disk, 6<<30); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"e2fsck", "-fy", disk}, {"resize2fs", disk}, {"e2fsck", "-fn", disk}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%q: %v\n%s", args, err, out)
		}
	}
}

// A build that is cancelled ends at once, with nothing but the error.
func TestReadCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Read(ctx, layersOf(tartest.Of(t, file("x", "x"))), testLimits, nothing); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func FuzzTree(f *testing.F) {
	f.Add("a/b", byte(tar.TypeReg), "", ".wh.a", byte(tar.TypeReg), "")
	f.Add("l", byte(tar.TypeSymlink), "../..", "l/x", byte(tar.TypeLink), "l")
	f.Add(".wh..wh.plnk/1", byte(tar.TypeReg), "", "x", byte(tar.TypeLink), ".wh..wh.plnk/1")
	f.Add("d", byte(tar.TypeDir), "", "d/.wh..wh..opq", byte(tar.TypeReg), "")
	f.Fuzz(func(t *testing.T, name string, kind byte, link, name2 string, kind2 byte, link2 string) {
		tr := newTree(testLimits)
		for i, h := range []tar.Header{{Name: name, Typeflag: kind, Linkname: link}, {Name: name2, Typeflag: kind2, Linkname: link2}, {Name: name + "/" + name2, Typeflag: kind2}} {
			tr.layer = i
			_ = tr.add(&h)
		}
		if tr.root.children == nil || tr.root.mode&modeType != modeDir {
			t.Error("the root is no directory any more")
		}
		tr.measure()
		for path := range strings.SplitSeq(list(tr), "\n") {
			if strings.Contains(path, "/../") {
				t.Error(path)
			}
		}
	})
}
