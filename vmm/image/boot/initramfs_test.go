package boot

import (
	"bytes"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"
)

func fixtureModules() (modules []Module) {
	for i, m := range ModuleNames {
		modules = append(modules, Module{m, bytes.Repeat([]byte{'m'}, i+1)})
	}
	return modules
}

func TestInitramfs(t *testing.T) {
	guest := Guest{[]byte("agent"), []byte("busybox"), []string{"sh", "httpd"}, fixtureModules()}
	entries := guest.entries()
	first, err := packInitramfs(entries)
	if err != nil {
		t.Fatal(err)
	}
	entries[0], entries[len(entries)-1] = entries[len(entries)-1], entries[0]
	second, err := packInitramfs(entries)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) {
		t.Error("the order of the entries changes the archive")
	}

	seen := map[string]string{}
	r := cpio.NewReader(bytes.NewReader(first))
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.ModTime.Unix() != 0 || h.Uid != 0 || h.Guid != 0 {
			t.Errorf("%s: time %v, owner %d:%d", h.Name, h.ModTime, h.Uid, h.Guid)
		}
		if parent := filepath.Dir(h.Name); parent != "." && seen[parent] == "" {
			t.Errorf("%s comes before its directory", h.Name)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Linkname != "" {
			data = []byte(h.Linkname)
		}
		seen[h.Name] = fmt.Sprintf("%o %s", h.Mode, data)
	}
	for name, want := range map[string]string{
		"init":                        "100755 agent",
		"bin/busybox":                 "100755 busybox",
		"bin/sh":                      "120777 busybox",
		"sbin":                        "120777 bin",
		"tmp":                         "41777 ",
		"dev/console":                 "20600 ",
		"lib/modules/virtio_ring.ko":  "100644 m",
		"etc/passwd":                  "100644 root::0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
		"lib/modules/overlay.ko":      "100644 " + strings.Repeat("m", len(ModuleNames)),
		"lib/modules/virtio_pci.ko":   "100644 mmmmmm",
		"lib/modules/virtio_mmio.ko":  "100644 mmm",
		"lib/modules/virtio-rng.ko":   "100644 " + strings.Repeat("m", 12),
		"lib/modules/net_failover.ko": "100644 " + strings.Repeat("m", 10),
	} {
		if seen[name] != want {
			t.Errorf("%s: %q, want %q", name, seen[name], want)
		}
	}
	if list := seen[moduleList]; !strings.HasPrefix(list, "100644 /lib/modules/virtio_ring.ko\n/lib/modules/virtio.ko\n") {
		t.Errorf("%s: %q", moduleList, list)
	}
	// Device numbers 5, 1 stand in the header of dev/console as 2 x 8 digits before the name's
	// length.
	if i := bytes.Index(first, []byte("dev/console\x00")); i < 110 || string(first[i-110+78:i-110+94]) != "0000000500000001" {
		t.Error("dev/console has not the device numbers 5, 1")
	}
}
