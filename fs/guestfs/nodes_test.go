package guestfs

import (
	"errors"
	"strconv"
	"syscall"
	"testing"

	"banger/vmm"
)

// testRoot takes the number of a root for the serial of its VM.
func testRoot(node uint64) (uint64, bool) { return node, !IsFile(node) }

func TestNodes(t *testing.T) {
	nodes := newNodes(maxNodes, testRoot)
	name := func(dir *node, name string, kind uint32) *node {
		t.Helper()
		n, err := nodes.named(dir, name, kind)
		if err != nil {
			t.Fatal(err)
		}
		if !IsFile(n.id) || nodes.get(n.id) != n {
			t.Fatalf("%s has node %x", name, n.id)
		}
		return n
	}
	is := func(n *node, want string) {
		t.Helper()
		path, err := nodes.path(n)
		if path != want || (want == "") != errors.Is(err, vmm.ErrNotFound) {
			t.Errorf("the path is %s (%v), not %s", path, err, want)
		}
	}
	root := nodes.get(7)
	is(root, "/")
	d := name(root, "d", syscall.S_IFDIR)
	f := name(d, "f", syscall.S_IFREG)
	is(f, "/d/f")
	if again := name(d, "f", syscall.S_IFREG); again != f {
		t.Error("a file has two nodes")
	}
	link := name(d, "f", syscall.S_IFLNK)
	if link == f {
		t.Error("a link that replaced a file has its node")
	}
	is(f, "")
	is(link, "/d/f")

	// A renamed directory keeps its files and replaces what had the name.
	e := name(root, "e", syscall.S_IFDIR)
	old := name(e, "d", syscall.S_IFDIR)
	nodes.renamed(root, "d", e, "d")
	is(d, "/e/d")
	is(link, "/e/d/f")
	is(old, "")
	nodes.renamed(e, "none", root, "none")
	nodes.removed(d, "f")
	is(link, "")

	// A forgotten node is gone unless it leads to one that the kernel knows.
	g := name(d, "g", syscall.S_IFREG)
	nodes.forget(d.id, 1)
	nodes.forget(e.id, 1)
	is(g, "/e/d/g")
	nodes.forget(g.id, 1)
	nodes.forget(f.id, 1)
	nodes.forget(f.id, 1)
	nodes.forget(old.id, 1)
	nodes.forget(link.id, 5)
	if len(nodes.known) != 1 || len(root.kids) != 0 {
		t.Errorf("%d nodes are left, %d names in the root", len(nodes.known), len(root.kids))
	}
	nodes.forget(root.id, 1)
	if len(nodes.known) != 0 {
		t.Error("the root of a removed VM stays")
	}
	if nodes.get(f.id) != nil {
		t.Error("a forgotten node is still known")
	}
}

// TestNodesShare expects that a guest with very many files leaves room for others.
func TestNodesShare(t *testing.T) {
	const most = 1 << 12
	nodes := newNodes(most, testRoot)
	fill := func(serial uint64) int {
		root := nodes.get(serial)
		for i := 0; ; i++ {
			if _, err := nodes.named(root, strconv.Itoa(i), syscall.S_IFREG); err != nil {
				if !errors.Is(err, vmm.ErrNoMemory) {
					t.Fatal(err)
				}
				return i
			}
		}
	}
	// Each uses half of the rest.
	for serial, want := range []int{most / 2, most / 4, most / 8} {
		if n := fill(uint64(serial) + 7); n < want-4 || n > want {
			t.Errorf("%d files of the guest are known, not %d", n, want)
		}
	}
}
