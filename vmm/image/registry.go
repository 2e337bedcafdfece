package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"

	"banger/internal/host"
	"banger/vmm"
	"banger/vmm/image/rootfs"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// fetched is how much of a build is done when all layers are fetched.
const fetched = 0.5

// checkRegistry refuses a reference without a registry: a bare name may mean any registry's.
func checkRegistry(arg string) error {
	host, rest, ok := strings.Cut(arg, "/")
	if !ok || rest == "" || !strings.ContainsAny(host, ".:") && host != "localhost" {
		return vmm.ErrInvalid
	}
	if _, err := name.ParseReference(arg); err != nil {
		return fmt.Errorf("%v: %w", err, vmm.ErrInvalid)
	}
	return nil
}

// loopback reports whether a host's name or address means this host itself.
func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// planRegistry asks a registry (distribution-spec) for an image and fetches the missing layers.
func planRegistry(ctx context.Context, j *job) (*plan, error) {
	ref, err := name.ParseReference(j.source.arg)
	if err != nil {
		return nil, err
	}
	late := fmt.Errorf("its layers did not arrive within %v", fetchTime)
	ctx, cancel := context.WithTimeoutCause(ctx, fetchTime, late)
	defer cancel()
	ask := newAsker(j.set.transport, ref.Context().RegistryStr())
	defer ask.direct.CloseIdleConnections()
	img, err := remote.Image(ref, remote.WithContext(ctx), remote.WithAuth(authn.Anonymous),
		remote.WithPlatform(rootfs.Platform), remote.WithTransport(ask), remote.WithUserAgent("banger"))
	if err != nil {
		return nil, registryError(j.source.arg, err)
	}
	m, err := img.Manifest()
	if err != nil {
		return nil, fmt.Errorf("cannot read its manifest: %w", err)
	}
	hash, err := img.Digest()
	if err != nil {
		return nil, err
	}
	i := &rootfs.Image{Digest: hash.String()}
	if m.Config.Size > rootfs.MaxJSON || len(m.Layers) > rootfs.MaxLayers {
		return nil, fmt.Errorf("a configuration of %d bytes and %d layers are too much",
			m.Config.Size, len(m.Layers))
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return nil, fmt.Errorf("cannot read its configuration: %w", err)
	}
	if i.Config, err = rootfs.ParseConfig(config); err != nil {
		return nil, err
	}
	var total, done int64
	for _, d := range m.Layers {
		ask.layers.Store(d.Digest.String(), d.Size)
		if total += d.Size; d.Size < 0 || total > j.set.o.Limits.Bytes {
			return nil, fmt.Errorf("layers of more than %d bytes, see image_max_size", j.set.o.Limits.Bytes)
		}
	}
	progress := func(n int) {
		done += int64(n)
		j.progress(fetched * float64(done) / float64(max(1, total)))
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	for n, l := range layers {
		fetch := func() (io.ReadCloser, error) { return l.Compressed() }
		name := ref.Context().Name()
		if err := j.set.fetchLayer(ctx, &m.Layers[n], name, fetch, progress); err != nil {
			return nil, fmt.Errorf("cannot fetch layer %d of %d: %w", n+1, len(layers), cause(ctx, err))
		}
		i.Layers = append(i.Layers, j.set.cachedLayer(&m.Layers[n]))
	}
	return j.planImage(i, fetched)
}

// registryError returns the error of an image that cannot be read from its registry.
func registryError(reference string, err error) error {
	var refused *transport.Error
	if errors.As(err, &refused) && (refused.StatusCode == http.StatusUnauthorized ||
		refused.StatusCode == http.StatusForbidden) {
		return fmt.Errorf("the registry wants credentials, and banger has none; "+
			"run `skopeo copy docker://%s oci:DIRECTORY` and use the source oci:DIRECTORY", reference)
	}
	return fmt.Errorf("cannot ask the registry: %w", err)
}

// fetchLayer fetches a layer of a repository unless it is here, checks its digest, and keeps it.
// Builds wait for each other's layers within one repository only, because another may be slow.
func (s *Set) fetchLayer(ctx context.Context, d *v1.Descriptor, repository string,
	fetch func() (io.ReadCloser, error), progress func(int)) error {
	if d.Digest.Algorithm != "sha256" {
		return fmt.Errorf("its digest is a %.20q; only sha256 is understood", d.Digest.Algorithm)
	}
	turn := layersName + "/" + d.Digest.Hex + " " + repository
	if err := s.turn(ctx, turn); err != nil {
		return err
	}
	defer s.endTurn(turn)
	to := s.path(blobsName, layersName, d.Digest.Hex)
	if fi, err := os.Stat(to); err == nil && fi.Size() == d.Size {
		progress(int(d.Size))
		return nil
	}
	if err := host.MakeDirs(s.path(blobsName, layersName), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(s.path(blobsName, layersName), ".fetching-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // unless it was renamed
	err = copyLayer(ctx, f, d, fetch, progress)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return errors.Join(os.Rename(f.Name(), to), host.SyncDir(s.path(blobsName, layersName)))
}

// copyLayer copies the bytes that the descriptor describes, and no others.
func copyLayer(ctx context.Context, to *os.File, d *v1.Descriptor,
	fetch func() (io.ReadCloser, error), progress func(int)) error {
	from, err := fetch()
	if err != nil {
		return err
	}
	defer from.Close()
	h := sha256.New()
	all := io.TeeReader(host.NewReader(ctx, from, progress), h)
	n, err := host.CopySparse(ctx, to, all, host.Limit{Read: d.Size})
	if err != nil && !errors.Is(err, host.ErrTooMuch) {
		return err
	}
	got := "sha256:" + hex.EncodeToString(h.Sum(nil))
	if err != nil || n != d.Size || got != d.Digest.String() {
		return fmt.Errorf("%w: %d bytes with the digest %s, not %d with %s",
			rootfs.ErrDamaged, n, got, d.Size, d.Digest)
	}
	return nil
}

// cachedLayer returns a fetched layer. If the layer has changed since, it is removed, and the next
// build fetches it again.
func (s *Set) cachedLayer(d *v1.Descriptor) *rootfs.Layer {
	path := s.path(blobsName, layersName, d.Digest.Hex)
	return &rootfs.Layer{
		Size: d.Size, Digest: d.Digest.String(),
		Open: func() (io.ReadCloser, error) {
			f, err := os.Open(path)
			if err != nil {
				return nil, err
			}
			return rootfs.NewPiece(f, 0, d.Size, true), nil
		},
		Damaged: func() {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				s.o.Log.Error("cannot remove a damaged layer", "err", err)
			}
		},
	}
}
