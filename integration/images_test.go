package integration

import (
	"archive/tar"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// bootTime bounds what a guest does, on a machine that others use too.
const bootTime = 120 * time.Second

// TestImages builds images of every kind, boots VMs of them, and stops those by their own init.
func TestImages(t *testing.T) {
	t.Parallel()
	if ok, cure := realVMs(); !ok {
		t.Skip(cure)
	}
	d := testDaemon(t, "qemu")
	t.Run("oci", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "app.tar")
		writeLayout(t, file, webImage(t, "from go"))
		d.build(t, "app", "oci:"+file)
		d.serves(t, "app", "from go", func() {
			// As the image says, and what the command line says instead (docker-exec(1)).
			const who = `while read -r key id rest; do if [ "$key" = Uid: ]; then echo "$id $PWD $PATH $GREETING"; fi; done </proc/self/status`
			if got, want := d.inGuest(t, "app", who), "1000 /www /bin hello\n"; got != want {
				t.Errorf("a command runs with %q, not %q", got, want)
			}
			out, err := d.client("exec", "-u", "0", "-w", "/", "-e", "GREETING=bye", "app", "--", "sh", "-c", who).CombinedOutput()
			if want := "0 / /bin bye\n"; string(out) != want {
				t.Errorf("a command of root's runs with %q, error %v, not with %q", out, err, want)
			}
		})
	})
	t.Run("umoci", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "umoci.tar")
		script := `set -e; cd "$(dirname "$1")"; umoci init --layout l; umoci new --image l:x; umoci unpack --image l:x b; mkdir b/rootfs/bin b/rootfs/www
cp /bin/busybox b/rootfs/bin/httpd; ln -s httpd b/rootfs/bin/sh; ln -s httpd b/rootfs/bin/sha256sum; echo from umoci >b/rootfs/www/index.html; umoci repack --image l:x b
umoci config --image l:x --config.entrypoint httpd --config.entrypoint=-f --config.cmd=-p --config.cmd=8080 --config.workingdir /www; umoci gc --layout l; tar -C l -cf "$1" .`
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
			if err != nil {
				t.Fatal(err)
			}
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
		if err != nil {
			t.Fatal(err)
		}
		hash, err := layers[1].Digest() // the first one is the good image's, too, and here already
		if err != nil {
			t.Fatal(err)
		}
		damage(t, filepath.Join(storage, "docker/registry/v2/blobs/sha256", hash.Hex[:2], hash.Hex, "data"))
		d.begin(t, "damaged", host+"/web:bad")
		if _, err := os.ReadFile(filepath.Join(d.mount, "images/damaged/wait/ready")); err == nil {
			t.Error("an image of a damaged layer is ready")
		}
		if got := d.read(t, "images/damaged/status"); !strings.HasPrefix(got, "failed ") || !strings.Contains(got, hash.Hex[:12]) {
			t.Errorf("status %q", got)
		}
		if files, _ := filepath.Glob(filepath.Join(d.state, "images/.blobs/layers", "*"+hash.Hex[:12]+"*")); len(files) > 0 {
			t.Errorf("the damaged layer was kept: %q", files)
		}
	})
}

func readFile(name string) string {
	b, _ := os.ReadFile(name)
	return string(b)
}

func (d *daemon) read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(d.mount, path))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// begin makes an image and writes its source.
func (d *daemon) begin(t *testing.T, name, source string) {
	t.Helper()
	dir := filepath.Join(d.mount, "images", name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
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

// boot makes a VM of an image and waits until it is healthy.
func (d *daemon) boot(t *testing.T, vm, image, settings string) {
	t.Helper()
	if err := os.Mkdir(d.path(vm), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, w := range [][2]string{{"config", "image " + image + "\n" + settings}, {"state", "start"}} {
		if err := write(d.path(vm, w[0]), w[1]); err != nil {
			t.Fatalf("%v: %s", err, readFile(d.path(vm, "error")))
		}
	}
	d.await(t, vm, "healthy")
}

// await reads a file of wait/, for bootTime at most.
func (d *daemon) await(t *testing.T, vm, what string) {
	t.Helper()
	out, err := exec.Command("timeout", fmt.Sprint(int(bootTime.Seconds())), "cat", d.path(vm, "wait", what)).CombinedOutput()
	if err != nil {
		t.Fatalf("%s is not %s: %v: %s\n%s", vm, what, err, out, readFile(d.path(vm, "console")))
	}
	t.Logf("%s: %s after %s s", vm, what, strings.TrimSpace(string(out)))
}

// serves boots a VM of an image of webImage's kind, looks at its page, and stops it.
func (d *daemon) serves(t *testing.T, image, page string, also ...func()) {
	t.Helper()
	d.boot(t, image, image, "")
	d.await(t, image, "tcp/8080")
	if ports := d.read(t, "vms/"+image+"/ports"); !strings.Contains(ports, "httpd") || !strings.Contains(ports, "8080") {
		t.Errorf("ports: %s", ports)
	}
	if os.Geteuid() == 0 {
		client := http.Client{Timeout: 10 * time.Second}
		r, err := client.Get("http://" + d.read(t, "vms/"+image+"/address") + ":8080/index.html")
		if err != nil {
			t.Fatal(err)
		}
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

// stopTidily stops a VM and wants it to have ended by itself, and to have said these words before, one after the other.
func (d *daemon) stopTidily(t *testing.T, vm string, words ...string) {
	t.Helper()
	console := openTerminal(t, d, vm)
	if err := write(d.path(vm, "state"), "stop"); err != nil {
		t.Fatal(err)
	}
	if state, failed := d.read(t, "vms/"+vm+"/state"), d.read(t, "vms/"+vm+"/error"); state != "stopped" || failed != "" {
		t.Errorf("%s is %s: %s", vm, state, failed)
	}
	waitUntil(t, "the end of the console of "+vm, func() bool {
		select {
		case <-console.ended:
			return true
		default:
			return false
		}
	})
	rest := console.String()
	for _, w := range append(words, "reboot: Power down") {
		_, after, ok := strings.Cut(rest, w)
		if !ok {
			t.Fatalf("%q is not on the console of %s, behind what comes before it:\n%s", w, vm, console)
		}
		rest = after
	}
}

func waitUntil(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(bootTime); !f(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not after %v: %s", bootTime, what)
		}
	}
}

// webImage is an image of two layers in which busybox serves a page on port 8080, as a user of its own.
func webImage(t *testing.T, page string) v1.Image {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image,
		tarLayer(t, map[string]string{"bin/httpd": string(busybox), "bin/sh": "-> httpd", "bin/sha256sum": "-> httpd", "www/gone": "x", "etc/passwd": "web:x:1000:1000::/www:/bin/false\n"}),
		tarLayer(t, map[string]string{"www/.wh.gone": "", "www/index.html": page + "\n"}))
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config = v1.Config{Entrypoint: []string{"httpd", "-f"}, Cmd: []string{"-p", "8080"}, WorkingDir: "/www", User: "web", Env: []string{"PATH=/bin", "GREETING=hello"}}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	return img
}

// tarLayer is a layer of these files; one whose text begins with an arrow is a symbolic link.
func tarLayer(t *testing.T, files map[string]string) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, text := range files {
		h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(text))}
		if to, ok := strings.CutPrefix(text, "-> "); ok {
			h.Typeflag, h.Size, h.Linkname, text = tar.TypeSymlink, 0, to, ""
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// writeLayout writes an image as the tar of an OCI layout.
func writeLayout(t *testing.T, file string, img v1.Image) {
	t.Helper()
	dir := t.TempDir()
	l, err := layout.Write(dir, empty.Index)
	if err == nil {
		err = l.AppendImage(img)
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "-C", dir, "-cf", file, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// startRegistry runs a registry on this host, with these lines more about its HTTP, and gives its address and where it keeps its blobs.
func startRegistry(t *testing.T, settings ...string) (host, storage string) {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host = l.Addr().String()
	l.Close()
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: %s\nhttp:\n  addr: %s\n%s\n", dir, host, strings.Join(settings, "\n"))
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("docker-registry", "serve", config)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v (make test-deps)", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if c, err := net.Dial("tcp", host); err == nil {
			c.Close()
			return host, dir
		}
		if time.Now().After(end) {
			t.Fatal("the registry does not answer")
		}
	}
}

// TestPrivateRegistry takes an image from a registry with a certificate that only this daemon's host trusts, and is told that another wants a password.
func TestPrivateRegistry(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	key, cert, passwords := filepath.Join(dir, "key"), filepath.Join(dir, "cert"), filepath.Join(dir, "passwords")
	out, err := exec.Command("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=suite",
		"-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert).CombinedOutput()
	if err != nil {
		t.Fatalf("%v (make test-deps): %s", err, out)
	}
	// The password is "open sesame"; htpasswd(1) has written it with bcrypt, which the registry wants.
	if err := os.WriteFile(passwords, []byte("somebody:$2b$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	https := fmt.Sprintf("  tls:\n    certificate: %s\n    key: %s", cert, key)
	open, _ := startRegistry(t, https)
	closed, _ := startRegistry(t, https, fmt.Sprintf("auth:\n  htpasswd:\n    realm: suite\n    path: %s", passwords))
	authority, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	trusted := http.DefaultTransport.(*http.Transport).Clone()
	trusted.TLSClientConfig = &tls.Config{RootCAs: x509.NewCertPool()}
	trusted.TLSClientConfig.RootCAs.AppendCertsFromPEM(authority)
	defer trusted.CloseIdleConnections()
	for _, host := range []string{open, closed} {
		ref, err := name.ParseReference(host + "/web:private")
		if err == nil {
			err = remote.Write(ref, webImage(t, "private"), remote.WithTransport(trusted), remote.WithAuth(&authn.Basic{Username: "somebody", Password: "open sesame"}))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	d, err := newDaemon(t.TempDir())
	if err == nil {
		err = errors.Join(openUp(d.state), d.addImage("fake"))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.cleanup)
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	fails := func(name, host, want string) {
		t.Helper()
		d.begin(t, name, host+"/web:private")
		if _, err := os.ReadFile(filepath.Join(d.mount, "images", name, "wait", "ready")); err == nil {
			t.Errorf("%s is ready", name)
		}
		if got := d.read(t, "images/"+name+"/status"); !strings.HasPrefix(got, "failed ") || !strings.Contains(got, want) {
			t.Errorf("status of %s: %s", name, got)
		}
	}
	fails("untrusted", open, "certificate")
	if err := d.signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	d.env = []string{"SSL_CERT_FILE=" + cert}
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	d.build(t, "private", open+"/web:private")
	fails("closed", closed, "without credentials")
}

// damage changes one byte of a file.
func damage(t *testing.T, file string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(file, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestImageCrash kills the daemon at random points of builds: what the next one finds is whole or failed, and nothing is left.
func TestImageCrash(t *testing.T) {
	t.Parallel()
	d := testDaemon(t, "fake")
	dir := t.TempDir()
	if err := openUp(dir); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "app.tar")
	writeLayout(t, file, webImage(t, "crash"))
	random := rand.New(rand.NewSource(1))
	ready := 0
	for round := range 15 {
		names := []string{fmt.Sprintf("a%d", round), fmt.Sprintf("b%d", round)}
		for _, n := range names {
			d.begin(t, n, "oci:"+file)
		}
		time.Sleep(time.Duration(random.Intn(250)) * time.Millisecond) // the point of the kill
		if round%3 == 0 {
			_ = os.Remove(filepath.Join(d.mount, "images", names[1]))
		}
		if err := d.signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := d.start(); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(filepath.Join(d.mount, "images"))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			status := d.read(t, "images/"+e.Name()+"/status")
			switch {
			case e.Name() == "builtin":
			case status == "ready":
				ready++
				if out, err := exec.Command("e2fsck", "-fn", filepath.Join(d.state, "images", e.Name(), "root.img")).CombinedOutput(); err != nil {
					t.Errorf("round %d: %s is ready and not whole: %v\n%s", round, e.Name(), err, out)
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
		if err := write(filepath.Join(d.mount, "blobs"), "gc"); err != nil {
			t.Fatal(err)
		}
		left, _ := filepath.Glob(filepath.Join(d.state, "images", ".*"))
		blobs, _ := filepath.Glob(filepath.Join(d.state, "images/.blobs/*/*"))
		hidden, _ := filepath.Glob(filepath.Join(d.state, "images/.blobs/*/.*"))
		if len(left) > 1 || len(blobs)+len(hidden) > 0 {
			t.Errorf("round %d: left are %q %q %q", round, left, blobs, hidden)
		}
	}
	t.Logf("%d images were ready", ready)
}
