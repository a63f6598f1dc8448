package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"plinth/internal/api"
	"plinth/internal/pki"
)

func certCommand() *cli.Command {
	return &cli.Command{
		Name: "cert", Usage: "list, renew and revoke certificates",
		Subcommands: []*cli.Command{
			{Name: "ls", Usage: "list the certificates that hold and what is revoked; on a member, its own", Flags: clusterFlags(), Action: listCerts},
			{
				Name: "renew", Usage: "get this machine's next certificate, for a new key, and what is revoked",
				Flags: clusterFlags(
					&cli.StringFlag{Name: "ca-server", Usage: "where plinth cluster serve answers, HOST:PORT", DefaultText: "where it joined"},
					&cli.BoolFlag{Name: "if-due", Usage: "only from two thirds of its time on, or after a change of the authority"},
				),
				Action: renewCert,
			},
			{
				Name: "revoke", Usage: "take back all that a member has, or one certificate", ArgsUsage: "ROLE/NAME",
				Flags:  clusterFlags(&cli.StringFlag{Name: "serial", Usage: "only the certificate with this serial"}),
				Action: revokeCert,
			},
		},
	}
}

func listCerts(c *cli.Context) error {
	info, err := clusterInfo(c)
	if errors.Is(err, pki.ErrNoAuthority) {
		i, err := pki.Load(c.String("dir"), clusterLog(c))
		if err != nil {
			return err
		}
		return printIdentity(c, i)
	}
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(info)
	}
	fmt.Printf("cluster %s, authorities %s, of which %s issues\n\n", info.Cluster, strings.Join(info.Authorities, " "), info.Issuer)
	w := table("MEMBER", "SERIAL", "ISSUED", "ENDS", "AUTHORITY", "IN USE", "SEEN")
	for _, k := range info.Certificates {
		seen := "-"
		if !k.Seen.IsZero() {
			seen = local(k.Seen)
		}
		fmt.Fprintf(w, "%s/%s\t%s\t%s\t%s\t%s\t%s\t%s\n", k.Role, k.Name, k.Serial, local(k.Issued), local(k.Until), k.Authority, yesNo(k.InUse), seen)
	}
	if err := w.Flush(); err != nil || len(info.Revoked) == 0 {
		return err
	}
	fmt.Println()
	w = table("REVOKED", "WHAT", "LISTED UNTIL")
	for _, r := range info.Revoked {
		what := "serial " + r.Serial
		if r.Serial == "" {
			what = "all until " + local(r.Before)
		}
		fmt.Fprintf(w, "%s/%s\t%s\t%s\n", r.Role, r.Name, what, local(r.Until))
	}
	return w.Flush()
}

func table(columns ...string) *tabwriter.Writer {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, strings.Join(columns, "\t"))
	return w
}

func renewCert(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	log, dir := clusterLog(c), c.String("dir")
	servers := []string{}
	if server := c.String("ca-server"); server != "" {
		if err := api.CheckHostPort(server); err != nil {
			return fmt.Errorf("--ca-server: %w", err)
		}
		servers = append(servers, server)
	}
	i, err := pki.Load(dir, log)
	a, aerr := pki.OpenAuthority(dir, log)
	switch {
	case aerr == nil && len(servers) == 0: // its own, whatever has become of it
		if err != nil || !c.Bool("if-due") || i.Due() {
			if err := a.RenewHome(); err != nil {
				return err
			}
		}
		if i, err = pki.Load(dir, log); err != nil {
			return err
		}
	case err != nil:
		return err
	case aerr != nil && !errors.Is(aerr, pki.ErrNoAuthority):
		return aerr
	default:
		if err := i.Update(c.Context, servers, !c.Bool("if-due")); err != nil {
			return err
		}
	}
	return printIdentity(c, i)
}

func revokeCert(c *cli.Context) error {
	args, err := arguments(c, "ROLE/NAME")
	if err != nil {
		return err
	}
	role, name, ok := strings.Cut(args[0], "/")
	if !ok {
		return fmt.Errorf("member %q is not of the form ROLE/NAME, such as host/h1", args[0])
	}
	a, err := pki.OpenAuthority(c.String("dir"), clusterLog(c))
	if err != nil {
		return err
	}
	known, err := a.Revoke(pki.Role(role), name, c.String("serial"))
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(map[string]any{"revoked": args[0], "serial": c.String("serial"), "known": known})
	}
	if !known {
		fmt.Printf("revoked, though nothing that %s has is known here\n", args[0])
	}
	return nil
}

// printIdentity shows a member's own certificate.
func printIdentity(c *cli.Context, i *pki.Identity) error {
	servers, err := i.Servers()
	if err != nil {
		return err
	}
	s := i.Status()
	s.Servers = servers
	if c.Bool("json") {
		return printJSON(s)
	}
	lines := [][2]string{
		{"member", s.Member},
		{"cluster", s.Cluster},
		{"uri", s.URI},
		{"serial", s.Serial},
		{"ends", fmt.Sprintf("%s, renewed from %s on", local(s.Until), local(s.Renew))},
		{"authority", s.Authority},
		{"trust", fmt.Sprintf("number %d, %d revoked", s.Sequence, s.Revoked)},
	}
	if len(servers) > 0 {
		lines = append(lines, [2]string{"servers", strings.Join(servers, " ")})
	}
	return printLines(lines)
}
