"""The page in a real browser: Debian's chromium without a window, driven by Selenium."""

import importlib.util
import os
import shutil
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusers_cg import DIGITS
from diffusers_cg.demo.page import MAX_IMAGES, SCALES, DemoModel, build_page


webdriver = pytest.importorskip("selenium.webdriver")
By = pytest.importorskip("selenium.webdriver.common.by").By
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs apt-get install chromium chromium-driver"),
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs gradio"),  # which is slow to import
]

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
]
PATIENCE = 60
COUNT = f"Images (up to {MAX_IMAGES})"


class Page:
    """What a person sees and does."""

    def __init__(self, driver, url: str):
        self.driver = driver
        driver.get(url)
        self.wait(lambda: self.button("Draw").is_displayed())

    def wait(self, condition):
        return WebDriverWait(self.driver, PATIENCE, 0.05, ignored_exceptions=(Exception,)).until(lambda _: condition())

    def button(self, text: str):
        return self.driver.find_element(By.XPATH, f"//button[normalize-space()='{text}']")

    def field(self, label: str):
        """The input of this label on the tab in view."""
        found = self.driver.find_elements(By.XPATH, f"//label[.//span[normalize-space()='{label}']]//input")
        found += self.driver.find_elements(By.XPATH, f"//input[@aria-label='{label}']")
        return next(element for element in found if element.is_displayed())

    def type(self, label: str, text: str) -> None:
        field = self.field(label)
        field.send_keys(f"{Keys.CONTROL}a{Keys.NULL}{text}{Keys.TAB}")

    def choose_class(self, name: str) -> None:
        field = self.field("Class")
        field.click()
        field.send_keys(f"{Keys.CONTROL}a{Keys.NULL}{name}{Keys.ARROW_DOWN}{Keys.ENTER}")
        self.wait(lambda: field.get_attribute("value") == name and field.get_attribute("aria-expanded") != "true")

    def status(self, tab: str = "sample") -> str:
        return self.driver.find_element(By.ID, f"{tab}-status").text

    def images(self, tab: str = "sample") -> list[str]:
        """Addresses of the images, which follow from their content."""
        found = self.driver.find_elements(By.CSS_SELECTOR, f"#{tab}-images img")
        return list(dict.fromkeys(image.get_attribute("src") for image in found))

    def is_done(self, tab: str = "sample") -> bool:
        return self.status(tab) == "Done."


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    page = build_page(DemoModel.load(str(DIGITS)), "Handwritten digits")
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, footer_links=[])
    yield url
    page.close()


@contextmanager
def browser(profile: Path):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


def test_choose_a_class_and_see_it_drawn_step_by_step(driver, url):
    page = Page(driver, url)
    assert page.images() == []
    page.choose_class("7")
    page.type("Steps", "20")
    page.type(COUNT, "2")
    page.button("Draw").click()
    seen = []
    while not page.is_done():
        state = page.status(), tuple(page.images())
        if "Step" in state[0] and state not in seen:
            seen.append(state)
    first = page.wait(lambda: page.is_done() and page.images())
    if "SCREENSHOT" in os.environ:
        driver.save_screenshot(os.environ["SCREENSHOT"])
    assert len(first) == 2
    model = DemoModel.load(str(DIGITS))
    *_, last = model.draw(7, model.default("classifier_scale", "ddim"), 20, "ddim", seed=0, num_images=2)
    for address, image in zip(first, last.images):
        with urllib.request.urlopen(address) as shown:
            seen_image = np.asarray(Image.open(shown).convert("L"), dtype=int)
        assert np.abs(seen_image - np.asarray(image, dtype=int)).max() <= 1

    page.type("Seed", "1")
    page.button("Draw").click()
    page.wait(lambda: "Step" in page.status())
    second = page.wait(lambda: page.is_done() and page.images())
    assert not set(first) & set(second)


@pytest.mark.parametrize(
    ("label", "text", "said"),
    [("Seed", "-1", "The seed must be"), (COUNT, "99", f"from 1 to {MAX_IMAGES}"), ("Steps", "0", "steps must be")],
)
def test_what_cannot_be_drawn_is_refused_on_the_page(driver, url, label, text, said):
    page = Page(driver, url)
    page.type(label, text)
    page.button("Draw").click()
    assert said in page.wait(lambda: driver.find_element(By.CSS_SELECTOR, ".toast-body").text)
    assert page.images() == []


def test_one_seed_across_scales(driver, url):
    page = Page(driver, url)
    driver.find_element(By.XPATH, "//button[@role='tab' and contains(., 'One seed')]").click()
    page.wait(lambda: page.button("Compare").is_displayed())
    page.type("Steps", "5")
    page.button("Compare").click()
    assert len(page.wait(lambda: page.is_done("scales") and page.images("scales"))) == len(SCALES)


def test_cover_a_part_and_see_it_filled(driver, url):
    page = Page(driver, url)
    driver.find_element(By.XPATH, "//button[@role='tab' and contains(., 'Inpaint')]").click()
    page.wait(lambda: page.button("Fill").is_displayed())
    page.button("Draw an image").click()
    fetched = "return performance.getEntriesByType('resource').some(each => each.name.endsWith('image.png'))"
    page.wait(lambda: driver.execute_script(fetched))
    page.type("Steps", "10")

    def cover_and_fill():  # again, where the image was not yet there to be covered
        canvas = driver.find_element(By.CSS_SELECTOR, "#inpaint-canvas canvas")
        stroke = webdriver.ActionChains(driver).move_to_element(canvas).click_and_hold().move_by_offset(60, 0)
        stroke.release().perform()
        page.button("Fill").click()
        time.sleep(1)
        return page.status("inpaint").startswith(("Step", "Done"))

    page.wait(cover_and_fill)
    [address] = page.wait(lambda: page.is_done("inpaint") and page.images("inpaint"))
    with urllib.request.urlopen(address) as shown:
        assert Image.open(shown).size == (128, 128)


def test_two_users_wait_for_each_other(driver, url, tmp_path):
    with browser(tmp_path / "profile") as other:
        pages = [Page(driver, url), Page(other, url)]
        for page in pages:
            page.choose_class("3")
            page.type("Steps", "50")
        for page in pages:
            page.button("Draw").click()
        at_work = set()
        while not all(page.is_done() for page in pages):
            at_work.add(tuple("Step" in page.status() for page in pages))
        assert (True, False) in at_work  # one is served while the other waits
        images = [page.wait(lambda page=page: page.images()) for page in pages]
        assert len(images[0]) == len(images[1]) == 4
