"""Graphs of classical models written by hand, in the form that `dgm.structure` gives: what the drawing is tested on."""

from dataclasses import dataclass, field

import networkx as nx

__all__ = ["GRAPHS", "Graph", "graph"]

_KINDS = {"*": "observed", "=": "deterministic", ".": "parameter", "!": "input", "#": "factor"}


@dataclass
class Graph:
    """Looks like a `Structure` to the drawing."""

    name: str
    graph: nx.DiGraph
    plates: dict[str, int]
    guide_graph: nx.DiGraph | None = None
    symbolic: frozenset[str] = field(default_factory=frozenset)


def graph(
    name: str, nodes: str, edges: str, guide_nodes: str = "", guide: str = "", dists: str = "", **plates: int
) -> Graph:
    """Nodes as `z@data x*@data W. sigma!`: * observed, = deterministic, . parameter, ! input, # factor; after @ the plates,
    outermost first. Edges as `z W -> x; mu -> z`. Distributions as `z Normal; x Categorical`."""
    made = nx.DiGraph()
    _add_nodes(made, nodes)
    _add_edges(made, edges)
    for entry in filter(None, (part.split() for part in dists.split(";"))):
        made.nodes[entry[0]]["dist"] = entry[1]
    recognition = None
    if guide:
        recognition = nx.DiGraph()
        recognition.add_nodes_from(made.nodes(data=True))
        _add_nodes(recognition, guide_nodes)
        _add_edges(recognition, guide)
    return Graph(name, made, plates, recognition)


def _add_nodes(made: nx.DiGraph, nodes: str) -> None:
    for word in nodes.split():
        site, _, plates = word.partition("@")
        kind = _KINDS.get(site[-1], "latent")
        site = site if kind == "latent" else site[:-1]
        made.add_node(
            site,
            kind=kind,
            plates=tuple(p for p in plates.split("/") if p),
            dist=None,
            event_shape=(),
            shape=(),
            size=10,
        )


def _add_edges(made: nx.DiGraph, edges: str) -> None:
    for part in filter(None, (part.strip() for part in edges.split(";"))):
        sources, targets = part.split("->")
        for u in sources.split():
            for v in targets.split():
                assert u in made and v in made, f"{u} -> {v}: unknown node"
                made.add_edge(u, v)


def _alarm() -> Graph:
    """The ALARM network (Beinlich et al. 1989): 37 nodes, 46 edges."""
    edges = [
        "HISTORY<LVFAILURE",
        "CVP<LVEDVOLUME",
        "PCWP<LVEDVOLUME",
        "LVEDVOLUME<HYPOVOLEMIA,LVFAILURE",
        "STROKEVOLUME<HYPOVOLEMIA,LVFAILURE",
        "ERRLOWOUTPUT",
        "HRBP<ERRLOWOUTPUT,HR",
        "HREKG<ERRCAUTER,HR",
        "ERRCAUTER",
        "HRSAT<ERRCAUTER,HR",
        "INSUFFANESTH",
        "ANAPHYLAXIS",
        "TPR<ANAPHYLAXIS",
        "EXPCO2<ARTCO2,VENTLUNG",
        "KINKEDTUBE",
        "MINVOL<INTUBATION,VENTLUNG",
        "FIO2",
        "PVSAT<FIO2,VENTALV",
        "SAO2<PVSAT,SHUNT",
        "PAP<PULMEMBOLUS",
        "PULMEMBOLUS",
        "SHUNT<INTUBATION,PULMEMBOLUS",
        "INTUBATION",
        "PRESS<INTUBATION,KINKEDTUBE,VENTTUBE",
        "DISCONNECT",
        "MINVOLSET",
        "VENTMACH<MINVOLSET",
        "VENTTUBE<DISCONNECT,VENTMACH",
        "VENTLUNG<INTUBATION,KINKEDTUBE,VENTTUBE",
        "VENTALV<INTUBATION,VENTLUNG",
        "ARTCO2<VENTALV",
        "CATECHOL<ARTCO2,INSUFFANESTH,SAO2,TPR",
        "HR<CATECHOL",
        "CO<HR,STROKEVOLUME",
        "BP<CO,TPR",
        "HYPOVOLEMIA",
        "LVFAILURE",
    ]
    made = nx.DiGraph()
    for entry in edges:
        made.add_node(entry.split("<")[0], kind="latent", plates=(), dist=None, event_shape=())
    for entry in edges:
        child, _, parents = entry.partition("<")
        made.add_edges_from((parent, child) for parent in parents.split(",") if parent)
    assert len(made) == 37 and made.number_of_edges() == 46
    return Graph("alarm", made, {})


GRAPHS = [
    graph("vae", "z@data x*@data decoder.", "z decoder -> x", "encoder.", "x encoder -> z", "z Normal; x Categorical", data=64),
    graph("ppca", "z@data x*@data weight. bias. log_variance.", "z weight bias log_variance -> x", guide="x weight log_variance -> z", data=64),
    graph("mixture", "z@data x*@data logits. means. log_variances.", "logits -> z; z means log_variances -> x", data=500),
    graph("top_down_vae", "z2@data z1@data x*@data prior_1. decoder.", "z2 prior_1 -> z1; z1 decoder -> x",
          "delta_1. delta_2. features_1. features_2.", "x features_1 features_2 delta_2 -> z2; x z2 prior_1 features_1 delta_1 -> z1", data=64),
    graph("diffusion", "z_T@data z[t]@data z[t-1]@data z_1@data x*@data denoiser.",
          "z_T -> z[t]; z[t] -> z[t-1]; z[t-1] -> z_1; z_1 -> x; denoiser -> z[t] z[t-1] z_1 x",
          guide="x -> z_1; z_1 -> z[t-1]; z[t-1] -> z[t]; z[t] -> z_T", data=64),
    graph("rbm", "z@data x*@data energy#@data W. b. c.", "z x W b c -> energy", data=64),
    graph("bayesian_mixture", "pi mu@components Lambda@components z@data x*@data alpha! m_0! W_0!",
          "alpha -> pi; pi -> z; z mu Lambda -> x; m_0 Lambda -> mu; W_0 -> Lambda", components=3, data=150),
    graph("lda", "alpha! eta! beta@topics theta@documents z@documents/words w*@documents/words",
          "alpha -> theta; theta -> z; z beta -> w; eta -> beta", topics=8, documents=100, words=64),
    graph("eight_schools", "mu tau theta@schools sigma!@schools y*@schools", "mu tau -> theta; theta sigma -> y", schools=8),
    graph("eight_schools_non_centred", "mu tau eta@schools theta=@schools sigma!@schools y*@schools",
          "mu tau eta -> theta; theta sigma -> y", schools=8),
    graph("hmm", "A B z_1 z_2 z_3 z_4 x_1* x_2* x_3* x_4*",
          "A -> z_2 z_3 z_4; z_1 -> z_2; z_2 -> z_3; z_3 -> z_4; z_1 B -> x_1; z_2 B -> x_2; z_3 B -> x_3; z_4 B -> x_4"),
    graph("hmm_folded", "A B z[t-1]@sequences z[t]@sequences x[t-1]*@sequences x[t]*@sequences",
          "A -> z[t]; z[t-1] -> z[t]; z[t-1] B -> x[t-1]; z[t] B -> x[t]", sequences=12),
    graph("state_space", "z_1 z_2 z_3 y_1* y_2* y_3* A. C. Q. R.",
          "z_1 A Q -> z_2; z_2 A Q -> z_3; z_1 C R -> y_1; z_2 C R -> y_2; z_3 C R -> y_3"),
    graph("factor_analysis", "W@features psi@features z@data x*@data/features", "W psi z -> x", features=10, data=200),
    graph("sprinkler", "cloudy sprinkler rain wet_grass", "cloudy -> sprinkler rain; sprinkler rain -> wet_grass"),
    graph("asia", "asia tub smoke lung bronc either= xray* dysp*",
          "asia -> tub; smoke -> lung bronc; tub lung -> either; either -> xray dysp; bronc -> dysp"),
    _alarm(),
    graph("naive_bayes", "pi phi@features c@data x*@data/features", "pi -> c; c phi -> x", features=12, data=100),
    graph("mixture_of_bernoullis", "alpha! a! b! pi theta@components/features z@data x*@data/features",
          "alpha -> pi; a b -> theta; pi -> z; z theta -> x", components=4, data=100, features=16),
    graph("raters_items", "ability@raters difficulty@items y*@raters/items", "ability difficulty -> y", raters=5, items=40),
    graph("dawid_skene", "pi theta@annotators z@items y*@annotators/items", "pi -> z; z theta -> y", annotators=5, items=45),
    graph("three_crossing", "a@users b@items c@tags y*@users/items/tags", "a b c -> y", users=5, items=6, tags=3),
    graph("with_factor", "mu x*@data penalty#", "mu -> x; mu -> penalty", data=10),
    graph("logistic_regression", "w b X!@data y*@data", "w b X -> y", data=569),
    graph("many_parameters", "z@data x*@data W1. W2. W3. W4. W5. b1. b2.", "z W1 W2 W3 W4 W5 b1 b2 -> x", data=7),
    graph("nested_three", "mu tau_a tau_b tau_c a@country b@country/city c@country/city/school y*@country/city/school/pupil s",
          "mu tau_a -> a; a tau_b -> b; b tau_c -> c; c s -> y", country=3, city=4, school=5, pupil=30),
    graph("pmf", "U@users V@movies sigma_U! sigma_V! sigma! R*@users/movies", "sigma_U -> U; sigma_V -> V; U V sigma -> R", users=943, movies=1682),
    graph("skip_edges", "a b c d e*", "a -> b c d e; b -> c d e; c -> d e; d -> e"),
    graph("long_names", "intercept_of_regression slope_of_regression noise_scale prediction=@observations outcome*@observations",
          "intercept_of_regression slope_of_regression -> prediction; prediction noise_scale -> outcome", observations=20),
    graph("semi_supervised", "y@data z@data x*@data decoder.", "y z decoder -> x", "encoder_y. encoder_z.",
          "x encoder_y -> y; x y encoder_z -> z", data=1000),
    graph("arma", "mu phi theta sigma y_1* y_2* y_3* y_4*", "mu phi theta sigma -> y_1 y_2 y_3 y_4; y_1 -> y_2; y_2 -> y_3; y_3 -> y_4"),
    graph("alone", "x", ""),
    graph("independent", " ".join(f"x_{i}*" for i in range(20)), ""),
    graph("hierarchical_crossing", "a@raters/tasks b@items y*@raters/tasks/items z@items/views", "a b -> y; b -> z", raters=3, tasks=4, items=5, views=6),
    graph("hogwild_cells", "u@rows v@columns s@rows/columns y*@rows/columns n*@columns m*@rows", "u v -> s; s -> y; v -> n; u -> m", rows=4, columns=5),
]  # fmt: skip
