package boot

import (
	"archive/tar"
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func packageTar(t *testing.T, leaveOut string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	add := func(name, data string) {
		if name == leaveOut {
			return
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(data)), Mode: 0o644, Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, data)
	}
	add("./boot/vmlinuz-6.1", "kernel")
	add("./elsewhere/overlay.ko", "no")
	for _, m := range ModuleNames {
		add("./lib/modules/6.1/kernel/"+m+".ko", m)
	}
	w.Close()
	return buf.Bytes()
}

func TestReadKernelTar(t *testing.T) {
	kernel, modules, err := readKernelTar(bytes.NewReader(packageTar(t, "")))
	if err != nil || string(kernel) != "kernel" || len(modules) != len(ModuleNames) || string(modules["overlay"]) != "overlay" {
		t.Errorf("kernel %q, %d modules, error %v", kernel, len(modules), err)
	}
	for leaveOut, want := range map[string]string{
		"./boot/vmlinuz-6.1":                     "no /boot/vmlinuz",
		"./lib/modules/6.1/kernel/virtio_net.ko": "no module virtio_net.ko",
	} {
		if _, _, err := readKernelTar(bytes.NewReader(packageTar(t, leaveOut))); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("without %s: %v", leaveOut, err)
		}
	}
	if _, _, err := readKernelTar(bytes.NewReader(packageTar(t, "")[:700])); err == nil {
		t.Error("half a package was taken")
	}
}

func TestParseProgramOutput(t *testing.T) {
	if got := dependsOn("linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-9-cloud-amd64\n"); got != "linux-image-6.1.0-9-cloud-amd64" {
		t.Errorf("depends on %q", got)
	}
	if got := dependsOn("W: nothing\n"); got != "" {
		t.Errorf("depends on %q", got)
	}
	if diff := cmp.Diff([]string{"[", "sh"}, appletNames("[\nbusybox\nsh\nsh\na/b\n")); diff != "" {
		t.Error(diff)
	}
}
