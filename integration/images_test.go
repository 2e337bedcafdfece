package integration

import (
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// TestImages builds images of every kind, boots VMs of them, and stops those by their own init.
func TestImages(t *testing.T) {
	t.Parallel()
	needRealVMs(t)
	d := testDaemon(t, "qemu")
	t.Run("oci", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "app.tar")
		writeLayout(t, file, webImage(t, "from go"))
		d.build(t, "app", "oci:"+file)
		d.serves(t, "app", "from go", func() {
			// Commands have the image's user, directory and environment. Options replace these
			// (docker-exec(1)).
			const who = `while read -r key id rest; do
	if [ "$key" = Uid: ]; then echo "$id $PWD $PATH $GREETING"; fi
done </proc/self/status`
			if got, want := d.inGuest(t, "app", who), "1000 /www /bin hello\n"; got != want {
				t.Errorf("a command runs with %q, not %q", got, want)
			}
			// The image's program and commands may open as many files as in docker.
			const files = `ulimit -Sn; ulimit -Hn; for p in /proc/[0-9]*; do
	read -r name <$p/comm; [ "$name" = httpd ] || continue
	while read -r _ what _ soft hard _; do [ $what != open ] || echo $soft $hard; done <$p/limits
	break
done 2>/dev/null`
			if got, want := d.inGuest(t, "app", files), "1024\n1048576\n1024 1048576\n"; got != want {
				t.Errorf("programs in an OCI guest may open %q files, not %q", got, want)
			}
			out, err := d.client("exec", "-u", "0", "-w", "/", "-e", "GREETING=bye",
				"app", "--", "sh", "-c", who).CombinedOutput()
			if want := "0 / /bin bye\n"; string(out) != want {
				t.Errorf("a command of root's runs with %q, error %v, not with %q", out, err, want)
			}
		})
	})
	t.Run("umoci", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "umoci.tar")
		script := `set -e
cd "$(dirname "$1")"
umoci init --layout l; umoci new --image l:x; umoci unpack --image l:x b
mkdir b/rootfs/bin b/rootfs/www; cp /bin/busybox b/rootfs/bin/httpd
ln -s httpd b/rootfs/bin/sh; ln -s httpd b/rootfs/bin/sha256sum
echo from umoci >b/rootfs/www/index.html; umoci repack --image l:x b
umoci config --image l:x --config.entrypoint httpd --config.entrypoint=-f \
	--config.cmd=-p --config.cmd=8080 --config.workingdir /www
umoci gc --layout l; tar -C l -cf "$1" .`
		if out, err := exec.Command("sh", "-c", script, "sh", file).CombinedOutput(); err != nil {
			t.Fatalf("umoci (make test-deps): %v\n%s", err, out)
		}
		d.build(t, "umoci", "oci:"+file)
		d.serves(t, "umoci", "from umoci")
	})
	t.Run("registry", func(t *testing.T) {
		host, storage := startRegistry(t)
		push := func(tag string) v1.Image {
			img := webImage(t, "from "+tag)
			ref, err := name.ParseReference(host + "/web:" + tag)
			if err == nil {
				err = remote.Write(ref, img)
			}
			must(t, err)
			return img
		}
		good := push("good")
		d.build(t, "pulled", host+"/web:good")
		digest, err := good.Digest()
		if got := d.read(t, "images/pulled/digest"); err != nil || got != digest.String() {
			t.Errorf("digest %s, the registry has %s", got, digest)
		}
		d.serves(t, "pulled", "from good")

		layers, err := push("bad").Layers()
		must(t, err)
		hash, err := layers[1].Digest() // the first one is the good image's, too, and here already
		must(t, err)
		blobs := filepath.Join(storage, "docker/registry/v2/blobs/sha256")
		damage(t, filepath.Join(blobs, hash.Hex[:2], hash.Hex, "data"))
		d.begin(t, "damaged", host+"/web:bad")
		if _, err := os.ReadFile(filepath.Join(d.mount, "images/damaged/wait/ready")); err == nil {
			t.Error("an image of a damaged layer is ready")
		}
		short := hash.Hex[:12]
		status := d.read(t, "images/damaged/status")
		if !strings.HasPrefix(status, "failed ") || !strings.Contains(status, short) {
			t.Errorf("status %q", status)
		}
		files, _ := filepath.Glob(filepath.Join(d.state, "images/.blobs/layers", "*"+short+"*"))
		if len(files) > 0 {
			t.Errorf("the damaged layer was kept: %q", files)
		}
	})
}

// begin makes an image and writes its source.
func (d *daemon) begin(t *testing.T, name, source string) {
	t.Helper()
	dir := filepath.Join(d.mount, "images", name)
	must(t, os.Mkdir(dir, 0o755))
	if err := write(filepath.Join(dir, "source"), source+"\n"); err != nil {
		t.Fatalf("%v: %s", err, readFile(filepath.Join(dir, "error")))
	}
}

// build makes an image and waits until it is ready.
func (d *daemon) build(t *testing.T, name, source string) {
	t.Helper()
	d.begin(t, name, source)
	took, err := os.ReadFile(filepath.Join(d.mount, "images", name, "wait", "ready"))
	if err != nil {
		t.Fatalf("%v: %s", err, d.read(t, "images/"+name+"/status"))
	}
	t.Logf("%s: built in %s s", source, strings.TrimSpace(string(took)))
}

// serves boots a VM of an image like webImage's, reads its page, and stops it.
func (d *daemon) serves(t *testing.T, image, page string, also ...func()) {
	t.Helper()
	d.boot(t, image, image, "")
	d.await(t, image, "tcp/8080")
	ports := d.read(t, "vms/"+image+"/ports")
	if !strings.Contains(ports, "httpd") || !strings.Contains(ports, "8080") {
		t.Errorf("ports: %s", ports)
	}
	if os.Geteuid() == 0 {
		client := http.Client{Timeout: 10 * time.Second}
		r, err := client.Get("http://" + d.read(t, "vms/"+image+"/address") + ":8080/index.html")
		must(t, err)
		defer r.Body.Close()
		if b, err := io.ReadAll(r.Body); err != nil || strings.TrimSpace(string(b)) != page {
			t.Errorf("page %q, error %v; want %q", b, err, page)
		}
	}
	for _, check := range also {
		check()
	}
	if err := os.Remove(filepath.Join(d.mount, "images", image)); err == nil {
		t.Error("a used image was removed")
	}
	d.works(t, image)
	d.stopTidily(t, image, "httpd was ended by SIGTERM")
}

// TestImageCrash kills the daemon at random moments of builds. The next daemon finds each image
// whole or failed, and nothing else is left.
func TestImageCrash(t *testing.T) {
	t.Parallel()
	d := testDaemon(t, "fake")
	dir := t.TempDir()
	must(t, openUp(dir))
	file := filepath.Join(dir, "app.tar")
	writeLayout(t, file, webImage(t, "crash"))
	random := rand.New(rand.NewSource(1))
	ready := 0
	for round := range 15 {
		names := []string{fmt.Sprintf("a%d", round), fmt.Sprintf("b%d", round)}
		for _, n := range names {
			d.begin(t, n, "oci:"+file)
		}
		time.Sleep(time.Duration(random.Intn(250)) * time.Millisecond) // the random moment
		if round%3 == 0 {
			_ = os.Remove(filepath.Join(d.mount, "images", names[1]))
		}
		must(t, d.signal(syscall.SIGKILL))
		must(t, d.start())
		entries, err := os.ReadDir(filepath.Join(d.mount, "images"))
		must(t, err)
		for _, e := range entries {
			status := d.read(t, "images/"+e.Name()+"/status")
			switch {
			case e.Name() == "builtin":
			case status == "ready":
				ready++
				disk := filepath.Join(d.state, "images", e.Name(), "root.img")
				if out, err := exec.Command("e2fsck", "-fn", disk).CombinedOutput(); err != nil {
					t.Errorf("round %d: %s is ready and damaged: %v\n%s", round, e.Name(), err, out)
				}
			case !strings.HasPrefix(status, "failed the daemon ended"):
				t.Errorf("round %d: %s is %s", round, e.Name(), status)
			}
			if e.Name() != "builtin" {
				if err := os.Remove(filepath.Join(d.mount, "images", e.Name())); err != nil {
					t.Error(err)
				}
			}
		}
		must(t, write(filepath.Join(d.mount, "blobs"), "gc"))
		left, _ := filepath.Glob(filepath.Join(d.state, "images", ".*"))
		blobs, _ := filepath.Glob(filepath.Join(d.state, "images/.blobs/*/*"))
		hidden, _ := filepath.Glob(filepath.Join(d.state, "images/.blobs/*/.*"))
		if len(left) > 1 || len(blobs)+len(hidden) > 0 {
			t.Errorf("round %d: left are %q %q %q", round, left, blobs, hidden)
		}
	}
	t.Logf("%d images were ready", ready)
}
