package integration

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// startRegistry runs a registry on this host with these lines in addition in its HTTP settings. It
// returns the registry's address and the directory of its blobs.
func startRegistry(t *testing.T, settings ...string) (host, storage string) {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	host = l.Addr().String()
	l.Close()
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n"+
		"    rootdirectory: %s\nhttp:\n  addr: %s\n%s\n", dir, host, strings.Join(settings, "\n"))
	must(t, os.WriteFile(config, []byte(text), 0o644))
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

// TestPrivateRegistry pulls from a registry whose certificate only the daemon's host trusts. A
// second registry refuses the daemon, which has no password.
func TestPrivateRegistry(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	key, cert := filepath.Join(dir, "key"), filepath.Join(dir, "cert")
	passwords := filepath.Join(dir, "passwords")
	out, err := exec.Command("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
		"ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=suite",
		"-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert).CombinedOutput()
	if err != nil {
		t.Fatalf("%v (make test-deps): %s", err, out)
	}
	// The password is "open sesame", as htpasswd(1) writes it with bcrypt.
	const account = "somebody:$2b$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n"
	must(t, os.WriteFile(passwords, []byte(account), 0o600))
	https := fmt.Sprintf("  tls:\n    certificate: %s\n    key: %s", cert, key)
	open, _ := startRegistry(t, https)
	closed, _ := startRegistry(t, https,
		"auth:\n  htpasswd:\n    realm: suite\n    path: "+passwords)
	authority, err := os.ReadFile(cert)
	must(t, err)
	trusted := http.DefaultTransport.(*http.Transport).Clone()
	trusted.TLSClientConfig = &tls.Config{RootCAs: x509.NewCertPool()}
	trusted.TLSClientConfig.RootCAs.AppendCertsFromPEM(authority)
	defer trusted.CloseIdleConnections()
	for _, host := range []string{open, closed} {
		ref, err := name.ParseReference(host + "/web:private")
		if err == nil {
			login := &authn.Basic{Username: "somebody", Password: "open sesame"}
			err = remote.Write(ref, webImage(t, "private"),
				remote.WithTransport(trusted), remote.WithAuth(login))
		}
		must(t, err)
	}
	d, err := newDaemon(t.TempDir())
	if err == nil {
		err = errors.Join(openUp(d.state), d.addImage("fake"))
	}
	must(t, err)
	t.Cleanup(d.cleanup)
	must(t, d.start())
	fails := func(name, host, want string) {
		t.Helper()
		d.begin(t, name, host+"/web:private")
		ready := filepath.Join(d.mount, "images", name, "wait", "ready")
		if _, err := os.ReadFile(ready); err == nil {
			t.Errorf("%s is ready", name)
		}
		got := d.read(t, "images/"+name+"/status")
		if !strings.HasPrefix(got, "failed ") || !strings.Contains(got, want) {
			t.Errorf("status of %s: %s", name, got)
		}
	}
	fails("untrusted", open, "certificate")
	must(t, d.signal(syscall.SIGTERM))
	d.env = []string{"SSL_CERT_FILE=" + cert}
	must(t, d.start())
	d.build(t, "private", open+"/web:private")
	fails("closed", closed, "banger has none")
}

// damage changes one byte of a file.
func damage(t *testing.T, file string) {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	b[len(b)/2] ^= 1
	must(t, os.WriteFile(file, b, 0o644))
}
