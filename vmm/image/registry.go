package image

import (
	"context"
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
	r, err := openRegistry(ctx, ref.Context(), &patient{ask, j.set.firstAgain})
	if err != nil {
		return nil, registryError(j.source.arg, cause(ctx, err))
	}
	top, err := r.manifest(ctx, ref)
	if err != nil {
		return nil, registryError(j.source.arg, cause(ctx, err))
	}
	how := fmt.Sprintf("as %.200s@DIGEST or by a tag of its own", ref.Context().Name())
	found, err := rootfs.Choose(ctx, r, top.Descriptor, top.Manifest, "", how)
	if err != nil {
		return nil, cause(ctx, err)
	}
	i := &rootfs.Image{Digest: found.Digest, Config: found.Config}
	layers := found.Manifest.Layers
	if len(layers) > rootfs.MaxLayers {
		return nil, fmt.Errorf("it has %d layers, %d are possible", len(layers), rootfs.MaxLayers)
	}
	var total, done int64
	for _, d := range layers {
		ask.layers.Store(d.Digest.String(), d.Size)
		if total += d.Size; d.Size < 0 || total > j.set.o.Limits.Bytes {
			return nil, fmt.Errorf("layers of more than %d bytes, see image_max_size", j.set.o.Limits.Bytes)
		}
	}
	progress := func(n int64) {
		done += n
		j.step(fetched*float64(done)/float64(max(1, total)), vmm.Moved{Bytes: done, Total: total})
	}
	for n := range layers {
		if err := j.fetchLayer(ctx, r, &layers[n], progress); err != nil {
			return nil, fmt.Errorf("cannot fetch layer %d of %d: %w", n+1, len(layers), cause(ctx, err))
		}
		i.Layers = append(i.Layers, j.set.cachedLayer(&layers[n]))
	}
	return j.planImage(i, fetched)
}

// registry is one repository of a registry. It implements rootfs.Source. go-containerregistry has
// asked for a token, if one is needed, and does not ask again by itself: patient and download do.
type registry struct {
	repository name.Repository
	transport  http.RoundTripper
}

func openRegistry(ctx context.Context, repository name.Repository,
	ask http.RoundTripper) (*registry, error) {
	t, err := transport.NewWithContext(ctx, repository.Registry, authn.Anonymous,
		transport.NewUserAgent(ask, "banger"), []string{repository.Scope(transport.PullScope)})
	if err != nil {
		return nil, err
	}
	return &registry{repository, t}, nil
}

// manifest returns a manifest or an index, whose digest was checked if ref has one.
func (r *registry) manifest(ctx context.Context, ref name.Reference) (*remote.Descriptor, error) {
	return remote.Get(ref, remote.WithContext(ctx), remote.WithTransport(r.transport))
}

// Manifest implements rootfs.Source.
func (r *registry) Manifest(ctx context.Context, d *v1.Descriptor) ([]byte, error) {
	found, err := r.manifest(ctx, r.repository.Digest(d.Digest.String()))
	if err != nil {
		return nil, absent(err)
	}
	return found.Manifest, nil
}

// Blob implements rootfs.Source.
func (r *registry) Blob(ctx context.Context, d *v1.Descriptor) ([]byte, error) {
	response, err := r.get(ctx, d.Digest, 0)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if err := transport.CheckError(response, http.StatusOK); err != nil {
		return nil, absent(err)
	}
	return io.ReadAll(response.Body)
}

// get asks for a blob from an offset on.
func (r *registry) get(ctx context.Context, digest v1.Hash, from int64) (*http.Response, error) {
	u := fmt.Sprintf("%s://%s/v2/%s/blobs/%s", r.repository.Scheme(), r.repository.RegistryStr(),
		r.repository.RepositoryStr(), digest)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, err
	}
	if from > 0 {
		request.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
	}
	client := http.Client{Transport: r.transport}
	return client.Do(request)
}

// absent returns ErrAbsent for the error of something that a registry does not have.
func absent(err error) error {
	var refused *transport.Error
	if errors.As(err, &refused) && refused.StatusCode == http.StatusNotFound {
		return rootfs.ErrAbsent
	}
	return err
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
func (j *job) fetchLayer(ctx context.Context, r *registry, d *v1.Descriptor,
	progress func(int64)) error {
	s := j.set
	if d.Digest.Algorithm != "sha256" {
		return fmt.Errorf("its digest is a %.20q; only sha256 is understood", d.Digest.Algorithm)
	}
	turn := layersName + "/" + d.Digest.Hex + " " + r.repository.Name()
	if err := s.turn(ctx, turn); err != nil {
		return err
	}
	defer s.endTurn(turn)
	to := s.path(blobsName, layersName, d.Digest.Hex)
	if fi, err := os.Stat(to); err == nil && fi.Size() == d.Size {
		progress(d.Size)
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
	get := newDownload(r, d, f, progress)
	err = get.run(ctx, s.firstAgain, func(err error) {
		s.o.Log.Warn("asking the registry for a layer again", "image", j.item.name,
			"layer", d.Digest.String(), "from", get.at, "err", err)
	})
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return errors.Join(os.Rename(f.Name(), to), host.SyncDir(s.path(blobsName, layersName)))
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
