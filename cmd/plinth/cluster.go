package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"plinth/datanode/shelf"
	"plinth/internal/api"
	"plinth/internal/pki"
)

const clusterDirDefault = "plinth-cluster"

// clusterFlags say where an identity lies, for all commands of the cluster.
func clusterFlags(more ...cli.Flag) []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "dir", Value: clusterDirDefault, Usage: "folder of this machine's identity, and of the authority where that is"},
		&cli.BoolFlag{Name: "json", Usage: "print JSON"},
	}, more...)
}

func clusterCommand() *cli.Command {
	san := func() cli.Flag {
		return &cli.StringSliceFlag{Name: "san", Usage: "host name or IP address in its certificates, for programs that look at those (repeatable)"}
	}
	return &cli.Command{
		Name: "cluster", Usage: "identities of hosts, data nodes and admins: begin a cluster, join it, renew and revoke",
		Subcommands: []*cli.Command{
			{
				Name: "init", Usage: "begin a cluster: make its authority and the first admin's certificate",
				Flags: clusterFlags(san(),
					&cli.StringFlag{Name: "name", Value: "admin", Usage: "name of the admin"},
					&cli.StringFlag{Name: "data", Usage: "data directory of a plinth up, whose pool the cluster is for", DefaultText: "a pool that is still to be made"},
					&cli.DurationFlag{Name: "lifetime", Value: pki.LifetimeDefault, Usage: "how long certificates hold; they are renewed at two thirds"},
				),
				Action: clusterInit,
			},
			{
				Name: "token", Usage: "let machines join",
				Subcommands: []*cli.Command{
					{
						Name: "create", Usage: "make a token with which one machine joins, once",
						Flags: clusterFlags(san(),
							&cli.StringFlag{Name: "role", Required: true, Usage: "host, datanode or admin"},
							&cli.StringFlag{Name: "name", Required: true, Usage: "what the machine is called"},
							&cli.DurationFlag{Name: "ttl", Value: pki.TokenTTLDefault, Usage: "how long the token may be used"},
							&cli.BoolFlag{Name: "replace", Usage: "for a member that is there; what it has is revoked when the new one joins"},
						),
						Action: createToken,
					},
					{Name: "ls", Usage: "list tokens that have not expired", Flags: clusterFlags(), Action: listTokens},
				},
			},
			{
				Name: "join", Usage: "make this machine a member; TOKEN - is read from standard input", ArgsUsage: "TOKEN",
				Flags: clusterFlags(
					&cli.StringFlag{Name: "ca-server", Required: true, Usage: "where plinth cluster serve answers, HOST:PORT"},
					&cli.BoolFlag{Name: "replace", Usage: "give up the identity that the folder has"},
				),
				Action: clusterJoin,
			},
			{
				Name: "serve", Usage: "answer for the authority: members join and renew here",
				Flags: clusterFlags(
					&cli.StringFlag{Name: "listen", Value: "127.0.0.1:10812", Usage: "address, HOST:PORT"},
					&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "log more"},
				),
				Action: clusterServe,
			},
			certCommand(),
			{
				Name: "rotate-ca", Usage: "take the next step of changing the authority: announce, switch, retire",
				Flags: clusterFlags(
					&cli.BoolFlag{Name: "check", Usage: "only say what is next and for whom it waits"},
					&cli.BoolFlag{Name: "force", Usage: "do not wait; members that are behind have to join again"},
					&cli.BoolFlag{Name: "abort", Usage: "take an announced authority back"},
				),
				Action: rotateAuthority,
			},
		},
	}
}

// clusterLog is what commands say beside their output.
func clusterLog(c *cli.Context) *slog.Logger {
	level := slog.LevelInfo
	if c.Bool("verbose") {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

func clusterInit(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	o := pki.InitOptions{Name: c.String("name"), Lifetime: c.Duration("lifetime")}
	var err error
	if o.SANs, err = pki.ParseSANs(c.StringSlice("san")); err != nil {
		return fmt.Errorf("--san: %w", err)
	}
	if data := c.String("data"); data != "" {
		id, err := shelf.PoolID(vfs.Default, filepath.Join(data, "datanode"))
		if err != nil {
			return fmt.Errorf("--data: %w", err)
		}
		o.Cluster = id
	}
	_, i, err := pki.Init(c.String("dir"), o, clusterLog(c))
	if err != nil {
		return err
	}
	return printIdentity(c, i)
}

func createToken(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	o := pki.TokenOptions{Role: pki.Role(c.String("role")), Name: c.String("name"), TTL: c.Duration("ttl"), Replace: c.Bool("replace")}
	var err error
	if o.SANs, err = pki.ParseSANs(c.StringSlice("san")); err != nil {
		return fmt.Errorf("--san: %w", err)
	}
	a, err := pki.OpenAuthority(c.String("dir"), clusterLog(c))
	if err != nil {
		return err
	}
	token, expires, err := a.CreateToken(o)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(map[string]any{"token": token.Text(), "expires": expires})
	}
	fmt.Println(token.Text())
	fmt.Fprintf(os.Stderr, "Until %s one machine joins as %s/%s with: plinth cluster join TOKEN --ca-server HOST:PORT --dir DIR\n", local(expires), o.Role, o.Name)
	return nil
}

func listTokens(c *cli.Context) error {
	info, err := clusterInfo(c)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(info.Tokens)
	}
	w := table("ID", "FOR", "EXPIRES", "USED")
	for _, t := range info.Tokens {
		fmt.Fprintf(w, "%s\t%s/%s\t%s\t%s\n", t.ID, t.Role, t.Name, local(t.Expires), yesNo(t.Used))
	}
	return w.Flush()
}

func clusterInfo(c *cli.Context) (*pki.Info, error) {
	if _, err := arguments(c); err != nil {
		return nil, err
	}
	a, err := pki.OpenAuthority(c.String("dir"), clusterLog(c))
	if err != nil {
		return nil, err
	}
	return a.Info()
}

// tokenTextMax bounds what is read from standard input.
const tokenTextMax = 1024

func clusterJoin(c *cli.Context) error {
	args, err := arguments(c, "TOKEN")
	if err != nil {
		return err
	}
	if err := api.CheckHostPort(c.String("ca-server")); err != nil {
		return fmt.Errorf("--ca-server: %w", err)
	}
	if args[0] == "-" { // where other users may see this one's command lines
		text, err := io.ReadAll(io.LimitReader(os.Stdin, tokenTextMax))
		if err != nil {
			return err
		}
		args[0] = strings.TrimSpace(string(text))
	}
	token, err := pki.ParseToken(args[0])
	if err != nil {
		return err
	}
	i, err := pki.Join(c.Context, c.String("dir"), pki.JoinOptions{Token: token, Server: c.String("ca-server"), Replace: c.Bool("replace")}, clusterLog(c))
	if err != nil {
		return err
	}
	return printIdentity(c, i)
}

func clusterServe(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	if err := api.CheckHostPort(c.String("listen")); err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	log, dir := clusterLog(c), c.String("dir")
	a, err := pki.OpenAuthority(dir, log)
	if err != nil {
		return err
	}
	i, err := pki.Load(dir, log)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", c.String("listen"))
	if err != nil {
		return fmt.Errorf("serve the authority: %w: choose another address with --listen", err)
	}
	group, ctx := errgroup.WithContext(c.Context)
	group.Go(func() error {
		i.Keep(ctx, pki.KeepOptions{Authority: a})
		return nil
	})
	group.Go(func() error { return pki.NewServer(a, i, log).Serve(ctx, l) })
	log.Info("serving", "ca", l.Addr().String(), "cluster", i.Self().Cluster.String(), "as", i.Self().String())
	if err := notifyReady(); err != nil {
		log.Warn("systemd does not learn that the authority is served", "err", err)
	}
	return group.Wait()
}

func rotateAuthority(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	a, err := pki.OpenAuthority(c.String("dir"), clusterLog(c))
	if err != nil {
		return err
	}
	check, force, abort := c.Bool("check"), c.Bool("force"), c.Bool("abort")
	var out struct {
		Took pki.Step `json:"took,omitempty"`
		pki.Rotation
	}
	switch {
	case check && (force || abort) || force && abort:
		return errors.New("--check, --force and --abort exclude each other")
	case abort:
		if err := a.AbortRotation(); err != nil {
			return err
		}
		fallthrough
	case check:
		info, err := a.Info()
		if err != nil {
			return err
		}
		out.Rotation = info.Rotation
	default:
		if out.Took, out.Rotation, err = a.Rotate(force); err != nil {
			return err
		}
	}
	if c.Bool("json") {
		return printJSON(out)
	}
	if out.Took != "" {
		fmt.Printf("done: %s\n", out.Took)
	}
	fmt.Printf("next: %s\n", out.Next)
	for _, w := range out.Waits {
		fmt.Printf("  waits for %s\n", w)
	}
	return nil
}

// local is a time as people of this machine read it.
func local(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
